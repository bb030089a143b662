"""The README's Python example runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.model
def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    # The same code with the smallest model, which writes an edit too, and less to train, so that it takes seconds.
    shortened = example.replace("qwen2.5-coder-0.5b", "smollm2-135m").replace(
        'editor="passage"', 'editor="self", max_edit_tokens=32, set={"steps": 4}, general_questions=0, general_texts=0'
    )
    assert "smollm2" in shortened
    assert "steps" in shortened
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened, str(README), "exec"), {})
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0].startswith("Interval(mean=")
    assert printed[-1]
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(tmp_path / "tarn-adapter").peft_type == "LORA"

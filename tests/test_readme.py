"""The README's Python example runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.model
def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    # The same code with the smallest model, which writes an edit too, and less to train, so that it takes seconds.
    few = "max_edit_tokens=16, max_answer_tokens=4, references=False, general_questions=0, general_texts=0"
    shortened = example
    for old, new in (
        ("qwen2.5-coder-0.5b", "smollm2-135m"),
        ('editor="passage"', f'editor="self", set={{"steps": 2}}, {few}'),
        ('rebuilt?"))', 'rebuilt?", max_tokens=4))'),
    ):
        assert old in shortened
        shortened = shortened.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened, str(README), "exec"), {})
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0].startswith("Interval(mean=")
    assert printed[-1]
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(tmp_path / "tarn-adapter").peft_type == "LORA"

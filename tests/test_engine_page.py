"""The example on the engine's page runs as it stands there, with a tiny model in place of the named one."""

import re
from pathlib import Path

import pytest

from selfedit.engine import LoraSpec, fit_all

PAGE = Path(__file__).parents[1] / "docs" / "engine.md"


def test_the_examples_train_a_hundred_adapters_and_imitate_the_model(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, taught = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    name = '"Qwen/Qwen2.5-0.5B"'
    assert name in example
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(example.replace(name, repr(base_model)), str(PAGE), "exec"), scope)
    results = scope["results"]
    assert isinstance(results, list)
    assert len(results) == 100
    assert all(result.error is None and result.last_loss < result.first_loss for result in results)
    exec(compile(taught, str(PAGE), "exec"), scope)
    (result,) = fit_all(scope["model"], LoraSpec(rank=4), [scope["job"]])
    assert result.error is None
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_model), str(tmp_path / "adapters" / "7")
    )
    assert loaded.peft_config["default"].r == 16

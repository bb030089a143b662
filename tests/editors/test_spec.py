"""What `--editor` accepts, and what the conditions are called."""

import pytest

from selfedit.editors.spec import EditorSpec, parse_editors
from selfedit.errors import UserError


@pytest.mark.parametrize(
    ("text", "spec", "name"),
    [
        ("none", EditorSpec("none"), "none"),
        ("passage", EditorSpec("passage"), "passage"),
        ("open-book", EditorSpec("open-book"), "open-book"),
        ("retrieval", EditorSpec("retrieval", "3"), "retrieval:3"),
        ("retrieval:01", EditorSpec("retrieval", "1"), "retrieval:1"),
        ("self", EditorSpec("self"), "self"),
        ("self:questions", EditorSpec("self", "questions"), "self:questions"),
        ("model:qwen2.5-coder-1.5b", EditorSpec("model", "qwen2.5-coder-1.5b"), "model:qwen2.5-coder-1.5b"),
        ("model:org/small:self-qa", EditorSpec("model", "org/small", prompt="self-qa"), "model:org/small:self-qa"),
        ("model:/a/b/v1.5", EditorSpec("model", "/a/b/v1.5"), "model:v1.5"),
        ("model:./x:rewrite", EditorSpec("model", "./x", prompt="rewrite"), "model:x:rewrite"),
        ("model:/a/b:c:rewrite", EditorSpec("model", "/a/b:c", prompt="rewrite"), "model:b:c:rewrite"),
        ("replay:news", EditorSpec("replay", "news"), "replay:news"),
        ("replay:data/squad.jsonl", EditorSpec("replay", "data/squad.jsonl"), "replay:squad"),
        (
            "replay:data/squad.jsonl#gpt-4.1",
            EditorSpec("replay", "data/squad.jsonl", "gpt-4.1"),
            "replay:squad#gpt-4.1",
        ),
        ("replay:a#b.jsonl#c", EditorSpec("replay", "a#b.jsonl", "c"), "replay:a#b#c"),
        ("api:gpt-5", EditorSpec("api", "gpt-5"), "api:gpt-5"),
        ("api:org/model:free", EditorSpec("api", "org/model:free"), "api:org/model:free"),
        (" api:gpt-5 ", EditorSpec("api", "gpt-5"), "api:gpt-5"),
    ],
)
def test_the_forms(text: str, spec: EditorSpec, name: str) -> None:
    assert EditorSpec.parse(text) == spec
    assert spec.name == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no kind of editor called ''"),
        ("gpt-5", "no kind of editor called 'gpt-5'"),
        ("None", "no kind of editor called 'None'"),
        ("passage:x", "'passage' takes nothing after it"),
        ("none:", "'none' takes nothing after it"),
        ("open-book:x", "'open-book' takes nothing after it"),
        ("retrieval:", "how many documents are shown, from 1"),
        ("retrieval:0", "how many documents are shown, from 1"),
        ("retrieval:-1", "how many documents are shown, from 1"),
        ("retrieval:all", "how many documents are shown, from 1"),
        (f"retrieval:{'1' * 5000}", "how many documents are shown, from 1"),
        ("self:", "the prompt after 'self:' is missing"),
        ("replay", "the file after 'replay:' is missing"),
        ("replay:", "the file after 'replay:' is missing"),
        ("replay:#w", "the file after 'replay:' is missing"),
        ("replay:f#", "the writer's name after '#' is empty"),
        ("model", "the model after 'model:' is missing"),
        ("model::rewrite", "the model after 'model:' is missing"),
        ("model:x:", "the prompt's name after ':' is empty"),
        ("api", "the model after 'api:' is missing"),
        ("api: ", "the model after 'api:' is missing"),
        ("api:a|b", "must not hold '|'"),
        ("self:a\nb", "control characters"),
    ],
)
def test_a_mistake_gets_one_line_with_the_forms(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        EditorSpec.parse(text)
    message = str(caught.value)
    assert reason in message
    assert "replay:FILE[#writer]" in message
    assert "\n" not in message


def test_conditions_of_one_name_are_refused() -> None:
    assert [spec.name for spec in parse_editors(["none", "self", "api:gpt-5"])] == ["none", "self", "api:gpt-5"]
    with pytest.raises(UserError, match="'replay:a' is already there"):
        parse_editors(["replay:x/a.jsonl", "replay:y/a.jsonl"])

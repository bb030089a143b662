"""Every setting of every method, with its type, bounds, default and one line of help.

The command line makes its flags from these, a YAML file sets the same names, and a run's `config.yaml` records them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from selfedit.editors.endpoint import KEY_VARIABLE, Endpoint
from selfedit.errors import UserError
from selfedit.models.bundled import DEFAULT as MODEL
from selfedit.presets import NAMES as PRESETS
from selfedit.presets import preset_settings

# Settings that change where, how fast or how loudly a run goes, but none of its results: a resumed run may change them.
# (Other documents than the run began with are refused, however they came to be others.)
FREE = (
    "out",
    "device",
    "workers",
    "ray",
    "gpus_per_worker",
    "cpus_per_worker",
    "usd_per_hour",
    "prices",
    "budget",
    "max_ungraded",
    "max_missing_edits",
    "api_concurrency",
    "api_batch",
    "api_poll_seconds",
    "api_key_variable",
    "judge_api_batch",
    "judge_api_key_variable",
    "track",
    "checkpoint_minutes",
    "strict",
    "follow_links",
)


# Several words; a file of settings may give a single one without a list.
_SEVERAL = BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
Words = Annotated[tuple[str, ...], _SEVERAL]

Remedy = Literal["none", "edits", "kl", "per-document"]  # against forgetting

Role = Literal["editor", "judge"]  # of an API model
JUDGE_KEY_VARIABLE = "JUDGE_API_KEY"
AUTO = "auto"  # the editor: chosen by the model's size; adapters: by the number of documents
# Documents, or parts, from which on each has an adapter: from five on no more general questions are sent to a document
# than of ten, while of fewer documents nearly every word is rare, or none is (docs/routing.md has the figures).
MANY = 5

_OUT = "the run's directory; the same command on it resumes"
_DOCUMENTS = "JSONL, SQuAD JSON, text files, folders, hf:NAME, news[:SPLIT], or updates[:SPLIT]"
_VALIDATION = "validation documents; if left out, a share of the training documents, split by title"
_SHARE = "share of the documents that is set apart for validation"
_GENERAL = "general questions asked per adapter, of those that the model knows, to see what it forgets; 0: none"
_NEIGHBOURS = (
    "questions of other documents asked per adapter of a single document, to see whether it says there what it learned"
)
_TEXTS = (
    "texts that the model itself wrote to general prompts, on which each adapter is compared with the model, to see "
    "how far it has moved; 0: none"
)
_AUTO_EDITOR = (
    "passage, self[:PROMPT], model:NAME[:PROMPT], replay:FILE[#WRITER], or api:MODEL; auto: passage for a model of"
    " less than 1 billion parameters, self for a larger one"
)
_REGIME = "one adapter per edit, or one per document on all its edits"
_RECITE = (
    "examine each adapter once more by recitation: it writes down what it learned under the question's title, and the"
    " model without it answers with that in its prompt; under a recipe that teaches topics (recite), the adapter is not"
    " told the title, but names it"
)
_EDIT_PROMPT = (
    "the prompt of api editors, and of self and model without one; of several, A,B,C, each edit of a document has the"
    " next one"
)


class Settings(BaseModel):
    """What all methods share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: Literal["seal"] | None = Field(
        None, description="a published experiment's settings for all that is not given; docs/fidelity.md lists them"
    )
    model: str = Field(MODEL, description="hub name, local folder, or the name of a bundled model")
    out: Path = Field(Path("runs/latest"), description=_OUT)
    seed: int = Field(0, description="all randomness derives from this number")
    device: str | None = Field(None, description="cpu, cuda, ...; if left out, an accelerator where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of the frozen model")
    instruct: bool | None = Field(
        None,
        description="prompt through the chat template; if left out, where name and configuration say that the model "
        "is tuned for chat",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    documents: Words = Field(("news:test",), description=_DOCUMENTS)
    limit: int | None = Field(None, ge=1, description="take this many documents, drawn with the seed")
    strict: bool = Field(
        False, description="refuse a folder with a file that cannot be read, instead of leaving the file out"
    )
    follow_links: bool = Field(False, description="follow links that lead out of a folder of documents")
    recipe: str = Field(
        "default", description="how adapters are trained: default, tiny, recite, seal, seal-joint, or a file"
    )
    set: dict[str, Any] = Field({}, description="a setting of the recipe to change, as name=value")
    prompt_file: Path | None = Field(None, description="your own prompts, in the form of the built-in prompts.yaml")
    max_edit_tokens: int = Field(512, ge=16, description="an edit is cut off after this many tokens")
    max_answer_tokens: int = Field(64, ge=1, description="an answer is cut off after this many tokens")
    temperature: float = Field(1.0, ge=0, description="sampling temperature of edits; answers are greedy")
    top_p: float = Field(
        0.95, gt=0, le=1, description="sampling of edits: the most likely tokens of this total probability"
    )
    teacher: Literal["writer", "open-book"] = Field(
        "writer",
        description="who answers the questions of an edit: its writer, or the model that learns it, with the document"
        " in its prompt; then questions are left out on whose answer the model's samples do not agree",
    )
    clean: bool = Field(
        True, description="strip edits of list marks and of lines that are cut off, repeated or about something else"
    )
    whole_answers: bool = Field(
        False, description="grade all that a base model wrote as an answer, not its first line alone"
    )
    grader: str = Field(
        "lexical",
        description="lexical (by shared words), judge:MODEL of an API, judge:model:NAME (run here), or judge:local",
    )
    max_ungraded: float = Field(0.02, ge=0, le=1, description="stop if a larger share of answers stays ungraded")
    max_missing_edits: float = Field(
        0.02,
        ge=0,
        le=1,
        description="stop if a larger share of edits cannot be written; up to it, they are left out and named",
    )
    general_questions: int = Field(10, ge=0, description=_GENERAL)
    general_texts: int = Field(8, ge=0, description=_TEXTS)
    neighbour_questions: int = Field(2, ge=0, description=_NEIGHBOURS)
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="minutes between two saved states of a long fit, from which it goes on after a kill; 0: none",
    )
    task_size: int | None = Field(
        None, ge=1, description="adapters trained together; if left out, chosen by the device"
    )
    api_base: str | None = Field(
        None, repr=False, description="address of an OpenAI-compatible API, for editors and a judge"
    )
    api_key_variable: str = Field(KEY_VARIABLE, description="the environment variable with the endpoint's key")
    api_kind: Literal["chat", "completions"] = Field("chat", description="which interface of the endpoint to use")
    api_batch: bool = Field(False, description="use the endpoint's batch interface, at half price")
    api_concurrency: int = Field(8, ge=1, description="API calls under way at once")
    api_poll_seconds: float = Field(
        15.0, gt=0, description="seconds between the first two looks at a batch; later waits are longer"
    )
    reasoning_effort: str | None = Field(
        None,
        description="reasoning effort of api editors; a reply may then have 8,192 tokens more, for the reasoning",
    )
    judge_api_base: str | None = Field(None, repr=False, description="address of another API, for the judge alone")
    judge_api_key_variable: str | None = Field(
        None, description="the environment variable with the judge's key; with an endpoint of its own JUDGE_API_KEY"
    )
    judge_api_batch: bool | None = Field(None, description="the batch interface for a judge; if left out, as editors")
    judge_reasoning_effort: str | None = Field(None, description="reasoning effort of a judge")
    prices: Path | None = Field(None, description="your own prices, in the form of the built-in prices.yaml")
    usd_per_hour: float | None = Field(None, ge=0, description="price of the device in US dollars per hour")
    budget: float | None = Field(None, gt=0, description="stop before more US dollars than this are spent")
    workers: int = Field(0, ge=0, description="workers of a local Ray; 0: this process")
    ray: str | None = Field(None, description="address of a Ray cluster to join: auto, or ray://host:port")
    gpus_per_worker: float | None = Field(None, ge=0, description="GPUs per worker; fractions are allowed")
    cpus_per_worker: float | None = Field(None, gt=0, description="CPUs per worker; they are also its threads")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("preset")
        if name not in PRESETS:
            return given
        found = preset_settings(name, cls.__name__.removesuffix("Settings").lower(), given)
        return {key: value for key, value in found.items() if key in cls.model_fields} | given

    @field_validator("*")
    @classmethod
    def _no_null_character(cls, value: Any) -> Any:
        if "\0" in str(value):
            raise ValueError("the operating system takes no name with a null character")
        return value

    def endpoint(self, role: Role) -> Endpoint:
        """How API models in this role are reached."""
        editors = Endpoint(
            base_url=self.api_base,
            key_variable=self.api_key_variable,
            kind=self.api_kind,
            effort=self.reasoning_effort,
            batch=self.api_batch,
            concurrency=self.api_concurrency,
            poll_seconds=self.api_poll_seconds,
        )
        if role == "editor":
            return editors
        # The editors' key goes to no other server than theirs.
        key = JUDGE_KEY_VARIABLE if self.judge_api_base else self.api_key_variable
        return replace(
            editors,
            base_url=self.judge_api_base or self.api_base,
            key_variable=self.judge_api_key_variable or key,
            kind="chat",
            effort=self.judge_reasoning_effort,
            batch=self.api_batch if self.judge_api_batch is None else self.judge_api_batch,
        )


class CompareSettings(Settings):
    """`selfedit compare`: who should write the notes?"""

    out: Path = Field(Path("runs/compare"), description=_OUT)
    editor: Words = Field(
        ("none", "passage", "self"),
        description="who writes what is learned; each is a condition of the comparison: none, open-book,"
        " retrieval[:K], passage, self[:PROMPT], model:NAME[:PROMPT], replay:FILE[#WRITER], api:MODEL",
    )
    edits: int = Field(1, ge=1, description="edits per document and condition")
    replicates: int = Field(1, ge=1, description="fits per edit, with different seeds")
    regime: Literal["single", "document", "joint"] = Field("single", description=f"{_REGIME}, or one for all documents")
    edit_prompt: str = Field("implications", description=_EDIT_PROMPT)
    recite: bool = Field(False, description=_RECITE)
    policy: Path | None = Field(None, description="a run of `train`: the editor that it selected is compared too")
    policy_round: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None, description="with --policy: the editor of this round instead of the selected one; all: of each round"
    )


class SweepSettings(Settings):
    """`selfedit sweep`: which recipe teaches most and harms least?"""

    out: Path = Field(Path("runs/sweep"), description=_OUT)
    documents: Words = Field(("news:train",), description=f"training documents: {_DOCUMENTS}")
    validation: Words = Field((), description=_VALIDATION)
    validation_share: float = Field(0.5, gt=0, lt=1, description=_SHARE)
    recipes: Words = Field((), description="a further recipe to try, besides --recipe")
    grid: Words = Field(
        (), description="values of a recipe setting to try, as NAME=A,B,C; several: every combination of them"
    )
    editor: Words = Field(
        ("passage",),
        description="what is learned from: passage, self[:PROMPT], model:NAME[:PROMPT], replay:FILE[#WRITER], or "
        "api:MODEL; several: each recipe is tried on each; open-book and retrieval[:K] are reference lines",
    )
    edits: int = Field(1, ge=1, description="edits per document and editor")
    replicates: int = Field(1, ge=1, description="fits per edit, with different seeds")
    regime: Literal["single", "document"] = Field("single", description=_REGIME)
    edit_prompt: str = Field("implications", description=_EDIT_PROMPT)
    most_lost: float = Field(
        0.05, ge=0, le=1, description="the largest share of general questions that the chosen recipe may lose"
    )


class LearnSettings(Settings):
    """`selfedit learn`: one adapter that knows all the documents, or one for each."""

    out: Path = Field(
        Path("runs/learn"),
        description=f"{_OUT}; if left out, one in runs/ that is named after the settings and the documents",
    )
    documents: Words = Field((), description=_DOCUMENTS)
    editor: str = Field(AUTO, description=_AUTO_EDITOR)
    edits: int = Field(1, ge=1, description="edits per document")
    adapters: Literal["auto", "joint", "per-document", "recite"] = Field(
        "auto",
        description="one adapter for all documents, or one per document (or part), of which the one whose document "
        "has most words in common with a question answers it; where none has enough, the model as it is; auto: as the "
        f"run of --add, else per-document from {MANY} documents on; recite: one adapter that names a question's topic "
        "and recites the document, from which the model as it is answers (with --recipe recite and --editor "
        "self:exam-questions, unless they are given)",
    )
    part_tokens: int = Field(
        512,
        ge=64,
        description="a document without questions that is longer, at 4 bytes a token, is cut into parts of at most so "
        "many, before headings where it has some; each part is learned like a document",
    )
    edit_prompt: str = Field("implications", description=_EDIT_PROMPT)
    exam: Literal["given", "auto"] = Field(
        "given",
        description="auto: before anything is learned, an exam is written for documents without questions, of which"
        " those questions are kept that are answered rightly with the document in the prompt and wrongly without",
    )
    exam_by: str = Field(
        AUTO, description="who writes it: self, model:NAME or api:MODEL; auto: what writes the edits, else the model"
    )
    exam_questions: int = Field(4, ge=1, description="questions of that exam per document, or part, at the most")
    add: Path | None = Field(
        None,
        description="a run of learn, or an adapter, to go on from: the new adapter is one that has both, and is asked"
        " about the run's documents too; of one per document, the run's are put beside the new ones; one that recites "
        "learns the run's documents again, with the new ones",
    )
    retry_missed: bool = Field(
        False, description="learn once more, on top, the documents of which a question was answered wrongly"
    )
    references: bool = Field(
        True,
        description="where there are questions, ask the model as it is with the document, and with what a search finds,"
        " in its prompt (open-book, retrieval)",
    )
    track: Literal["tensorboard", "wandb", "trackio"] | None = Field(
        None, description="send the loss curve and the exams on the way there"
    )

    @model_validator(mode="before")
    @classmethod
    def _recipe_to_recite(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"recipe": "recite"} | given if given.get("adapters") == "recite" else given


class TrainSettings(Settings):
    """`selfedit train`: make the model a better editor, by ReST-EM."""

    out: Path = Field(Path("runs/train"), description=_OUT)
    documents: Words = Field(("news:train",), description=f"training documents: {_DOCUMENTS}")
    validation: Words = Field((), description=_VALIDATION)
    validation_share: float = Field(0.2, ge=0, lt=1, description=_SHARE)
    select_on: Literal["validation", "test"] = Field(
        "validation",
        description="test: the documents of --validation are those of the test, as published; reports mark the result",
    )
    documents_per_round: int | None = Field(
        None, ge=1, description="train on so many fresh documents in each round; if left out, on all in each"
    )
    rounds: int = Field(2, ge=1, description="rounds of sampling, rewarding, selecting and training")
    limit: int | None = Field(
        50, ge=1, description="take this many documents, training and validation together, drawn with the seed"
    )
    edits: int = Field(5, ge=1, description="edits sampled per document and round (K)")
    replicates: int = Field(3, ge=1, description="fits per edit (S)")
    edit_prompt: str = Field("implications", description="the prompt of the editor that is trained, or several: A,B,C")
    select: Literal["best-of-k", "above-baseline", "top-fraction"] = Field(
        "best-of-k", description="which edits are kept"
    )
    baseline: Literal["none", "passage"] = Field(
        "none",
        description="with --select above-baseline: an edit has to beat the round's model before it learns the document,"
        " or after it learned the passage alone",
    )
    top_fraction: float = Field(
        0.2, gt=0, le=1, description="with --select top-fraction: the share of all edits that is kept"
    )
    ties: Literal["shorter", "first"] = Field(
        "first", description="of edits that score alike, prefer the shorter one, or the one that was sampled first"
    )
    keep_ties: bool = Field(True, description="keep one edit of a document whose edits all score alike")
    reward: Literal["fit", "likelihood", "judge"] = Field(
        "fit",
        description="fit: fine-tune on each edit and examine; likelihood: fine-tune, and see how probable the model's "
        "own open-book answers have become, those that are right; judge: have a model rate the edits",
    )
    judge: str | None = Field(
        None, description="with --reward judge: the API model that rates edits; if left out, the model itself"
    )
    judge_sample: int = Field(8, ge=0, description="with --reward judge: edits that are also fine-tuned on, to compare")
    general_questions: int = Field(3, ge=0, description=_GENERAL)
    general_texts: int = Field(0, ge=0, description=_TEXTS)
    neighbour_questions: int = Field(0, ge=0, description=_NEIGHBOURS)
    outer_recipe: str = Field("outer", description="how the editor is trained on the kept edits")
    outer_set: dict[str, Any] = Field({}, description="a setting of the outer recipe to change, as name=value")
    track: Literal["tensorboard", "wandb", "trackio"] | None = Field(
        None, description="send the metrics of each round there"
    )


class ContinualSettings(Settings):
    """`selfedit continual`: documents one after another, with what each step forgets."""

    out: Path = Field(Path("runs/continual"), description=_OUT)
    editor: str = Field(AUTO, description=_AUTO_EDITOR)
    edits: int = Field(1, ge=1, description="edits per document")
    edit_prompt: str = Field("implications", description=_EDIT_PROMPT)
    retain: Annotated[tuple[Remedy, ...], _SEVERAL] = Field(
        ("per-document",),
        min_length=1,
        description="what keeps earlier documents known. per-document: an adapter each, to which questions are routed; "
        "none: each is merged into the model, as published; edits: so too, and each step learns the edits of some "
        "earlier documents again; kl: so too, held to what the model says to general prompts; several are measured on "
        "the same sequences",
    )
    rehearsed: int = Field(4, ge=1, description="with --retain edits: earlier documents that a step learns again")
    sequences: int = Field(1, ge=1, description="sequences of documents, drawn with the seed; 1: in their order")
    length: int | None = Field(None, ge=1, description="documents of a sequence, drawn with the seed; left out: all")


S = TypeVar("S", bound=Settings)


def make_settings(kind: type[S], values: dict[str, Any], where: str = "settings") -> S:
    """Checked settings.  Errors: UserError that names the setting, its value and what is expected."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: no such setting {name!r}; settings are {', '.join(kind.model_fields)}") from None
        flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else where
        raise UserError(f"{where}: {flag} {first['input']!r}: {first['msg']}") from None

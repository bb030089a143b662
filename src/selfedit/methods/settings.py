"""Every setting of every procedure, with its default and one line of help.

Knows names, types and bounds: the command line makes its flags from these, a YAML file sets the same names, and a run's
`config.yaml` records them.  Knows no model and imports none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from selfedit.editors.endpoint import Endpoint
from selfedit.errors import UserError
from selfedit.models.bundled import NAME as BUNDLED

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
    "track",
    "checkpoint_minutes",
    "strict",
    "follow_links",
)


# Several words; a file of settings may give a single one without a list.
Words = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]

AUTO = "auto"  # the editor: chosen by the model's size


class Settings(BaseModel):
    """What all procedures share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(BUNDLED, description="hub name, local folder, or a bundled model's name")
    out: Path = Field(Path("runs/latest"), description="the run's directory; the same command on it resumes")
    seed: int = Field(0, description="all randomness derives from it and from what a piece of work is")
    device: str | None = Field(None, description="cpu, cuda, ...; the first accelerator if left out")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the frozen model")
    instruct: bool | None = Field(
        None, description="prompt through the chat template; decided by the model if left out"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    documents: Words = Field(
        ("news:test",), description="JSONL, SQuAD JSON, text files, folders, hf:NAME, or news[:SPLIT]"
    )
    limit: int | None = Field(None, ge=1, description="take this many documents, drawn with the seed")
    strict: bool = Field(False, description="refuse a folder with a file that cannot be read, which else is left out")
    follow_links: bool = Field(False, description="read what links in a folder of documents lead to outside of it")
    recipe: str = Field("default", description="how adapters are trained: default, seal, seal-joint, or a YAML file")
    set: dict[str, Any] = Field({}, description="recipe settings to change, as name=value")
    prompt_file: Path | None = Field(None, description="own prompts, in the form of the built-in prompts.yaml")
    max_edit_tokens: int = Field(512, ge=16, description="an edit is cut off after this many tokens")
    max_answer_tokens: int = Field(64, ge=1, description="an answer is cut off after this many tokens")
    temperature: float = Field(1.0, ge=0, description="of edits; answers are greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="of edits")
    grader: str = Field("lexical", description="lexical (by shared words), judge:MODEL of an API, or judge:local")
    max_ungraded: float = Field(0.02, ge=0, le=1, description="stop if a larger share of answers stays ungraded")
    max_missing_edits: float = Field(
        0.02,
        ge=0,
        le=1,
        description="stop if a larger share of edits cannot be written; others are left out, and named",
    )
    general_questions: int = Field(3, ge=0, description="general questions each adapter is asked, to see forgetting")
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="a fit that goes on alone saves its state so often, to go on from it after a kill; 0: never",
    )
    task_size: int | None = Field(None, ge=1, description="fits that share a bank; chosen by the device if left out")
    api_base: str | None = Field(
        None, repr=False, description="an OpenAI-compatible endpoint; the key is OPENAI_API_KEY"
    )
    api_kind: Literal["chat", "completions"] = Field("chat", description="which of the endpoint's interfaces")
    api_batch: bool = Field(False, description="use the endpoint's batch interface, at half price")
    api_concurrency: int = Field(8, ge=1, description="calls under way at once")
    api_poll_seconds: float = Field(15.0, gt=0, description="first wait between two looks at a batch")
    reasoning_effort: str | None = Field(
        None,
        description="of api editors, passed to the endpoint; a reply may then have 8,192 tokens more, for the "
        "reasoning",
    )
    judge_reasoning_effort: str | None = Field(None, description="the same for a judge")
    prices: Path | None = Field(None, description="own price file, in the form of the built-in prices.yaml")
    usd_per_hour: float | None = Field(None, ge=0, description="price of the device")
    budget: float | None = Field(None, gt=0, description="stop before more US dollars than this are spent")
    workers: int = Field(0, ge=0, description="workers of a local Ray; 0: this process")
    ray: str | None = Field(None, description="address of a Ray cluster to join: auto, or ray://host:port")
    gpus_per_worker: float | None = Field(None, ge=0, description="fractions allowed")
    cpus_per_worker: float | None = Field(None, gt=0)

    def endpoint(self, role: Literal["editor", "judge"]) -> Endpoint:
        """How API models in this role are reached."""
        return Endpoint(
            base_url=self.api_base,
            kind=self.api_kind,
            effort=self.reasoning_effort if role == "editor" else self.judge_reasoning_effort,
            batch=self.api_batch,
            concurrency=self.api_concurrency,
            poll_seconds=self.api_poll_seconds,
        )


class CompareSettings(Settings):
    """`selfedit compare`: who should write the notes?"""

    out: Path = Path("runs/compare")
    editor: Words = Field(
        ("none", "passage", "self"),
        description="a condition each: none, passage, self[:PROMPT], replay:FILE[#writer], api:MODEL",
    )
    edits: int = Field(1, ge=1, description="edits a document and condition")
    replicates: int = Field(1, ge=1, description="fits an edit, with different seeds")
    regime: Literal["single", "joint"] = Field("single", description="an adapter a document, or one for all documents")
    edit_prompt: str = Field("implications", description="the prompt of api editors, and of `self` without one")
    sweep: Words = Field(
        (), description="recipe settings to try on validation documents, as NAME=A,B,C; the best is used"
    )
    validation: Words = Field(
        (), description="where --sweep chooses; a quarter of the documents, split by title, if left out"
    )
    policy: Path | None = Field(None, description="a run of `train`: its selected policy becomes a further condition")
    policy_round: int | None = Field(
        None, ge=1, description="with --policy: this round's policy, whatever was selected"
    )


class LearnSettings(Settings):
    """`selfedit learn`: one adapter that knows all the documents."""

    out: Path = Field(
        Path("runs/learn"),
        description="the run's directory; the same command on it resumes; named by the settings and documents "
        "if left out",
    )
    documents: Words = Field((), description="JSONL, SQuAD JSON, text files, folders, hf:NAME, or news[:SPLIT]")
    editor: str = Field(
        AUTO,
        description="passage, self[:PROMPT], replay:FILE[#writer], or api:MODEL; auto: passage for a model of "
        "less than 1"
        " billion parameters, self for a larger one",
    )
    edits: int = Field(1, ge=1, description="edits a document")
    edit_prompt: str = Field("implications", description="the prompt of api editors, and of `self` without one")
    track: Literal["tensorboard", "wandb", "trackio"] | None = Field(
        None, description="send the loss curve, and scores on the way, there"
    )


class TrainSettings(Settings):
    """`selfedit train`: make the model a better editor, by ReST-EM."""

    out: Path = Path("runs/train")
    documents: Words = Field(("news:train",), description="where training documents come from")
    validation: Words = Field(
        (), description="where validation documents come from; a share of the documents, split by title, if left out"
    )
    validation_share: float = Field(0.2, ge=0, lt=1, description="of the documents, set apart before round 1")
    rounds: int = Field(2, ge=1, description="rounds of sampling, rewarding, selecting and training")
    limit: int | None = Field(50, ge=1, description="training and validation documents together, drawn with the seed")
    edits: int = Field(5, ge=1, description="edits sampled a document and round (K)")
    replicates: int = Field(3, ge=1, description="fits an edit (S)")
    edit_prompt: str = Field("implications", description="the prompt of the editor that is trained")
    select: Literal["best-of-k", "above-baseline", "top-fraction"] = Field(
        "best-of-k", description="which edits are kept"
    )
    top_fraction: float = Field(0.2, gt=0, le=1, description="with --select top-fraction: this share of all edits")
    keep_ties: bool = Field(True, description="keep an edit of documents on which all edits score alike")
    reward: Literal["fit", "judge"] = Field("fit", description="really fine-tune, or have a judge score the edits")
    judge: str | None = Field(
        None, description="with --reward judge: the API model that scores edits; the local one if left out"
    )
    judge_sample: int = Field(
        8, ge=0, description="with --reward judge: edits that are also really fine-tuned, to compare"
    )
    outer_recipe: str = Field("outer", description="how the editor is trained on the kept edits")
    outer_set: dict[str, Any] = Field({}, description="settings of the outer recipe to change, as name=value")
    track: Literal["tensorboard", "wandb", "trackio"] | None = Field(
        None, description="send each round's metrics there"
    )


class ContinualSettings(Settings):
    """`selfedit continual`: documents one after another into one model, with what each step forgets."""

    out: Path = Path("runs/continual")
    editor: str = Field(
        AUTO,
        description="passage, self[:PROMPT], replay:FILE[#writer], or api:MODEL; auto: passage for a model of "
        "less than 1"
        " billion parameters, self for a larger one",
    )
    edits: int = Field(1, ge=1, description="edits a document")
    edit_prompt: str = Field("implications", description="the prompt of api editors, and of `self` without one")


S = TypeVar("S", bound=Settings)


def make_settings(kind: type[S], values: dict[str, Any], where: str = "settings") -> S:
    """Checked settings.  Errors: UserError that names the setting, its value and what is expected."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: no such setting {name!r}; settings are {', '.join(kind.model_fields)}") from None
        flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else where
        raise UserError(f"{where}: {flag} {first['input']!r}: {first['msg']}") from None

"""The built-in general questions are enough, distinct, and answerable by what they accept."""

from selfedit.evaluation.general import general_questions
from selfedit.evaluation.grade import GradeItem
from selfedit.evaluation.lexical import LexicalGrader
from selfedit.evaluation.text import tokens


def test_there_are_enough_and_none_twice() -> None:
    questions = general_questions()
    assert len(questions) >= 320
    assert len({q.id for q in questions}) == len(questions)
    assert len({tuple(tokens(q.question)) for q in questions}) == len(questions)
    assert all(q.id.startswith("general|") and q.question.endswith(("?", ".")) for q in questions)
    assert general_questions() == questions
    assert general_questions() is not general_questions()


def test_a_run_asks_some_of_them_drawn_by_its_seed() -> None:
    drawn = general_questions(3, seed=1)
    assert len(drawn) == len({q.id for q in drawn}) == 60
    assert general_questions(3, seed=1) == drawn == general_questions(2, seed=1) + drawn[40:]
    assert set(drawn) < set(general_questions())
    assert {q.id for q in drawn} != {q.id for q in general_questions(3, seed=2)}
    assert general_questions(0) == []
    assert len(general_questions(1000)) == len(general_questions())


def test_every_accepted_answer_is_accepted_and_the_others_are_not() -> None:
    questions = general_questions()
    for question in questions:
        items = [GradeItem(question.question, question.answers, f"It is {answer}.") for answer in question.answers]
        assert [v.value for v in LexicalGrader().grade(items)] == ["right"] * len(items), question
        refusal = GradeItem(question.question, question.answers, "I cannot say.")
        assert LexicalGrader().grade([refusal])[0].value == "wrong", question


def test_repeating_the_question_is_no_answer() -> None:
    # Where the question offers alternatives ("a dog or a cow?") repeating it names the answer too.
    questions = [q for q in general_questions() if " or " not in q.question]
    echoes = [GradeItem(q.question, q.answers, q.question) for q in questions]
    right = [q.id for q, v in zip(questions, LexicalGrader().grade(echoes), strict=True) if v.value == "right"]
    assert right == []

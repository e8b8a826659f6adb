"""Languages of texts: the stemmer that BM25 takes, words without one, and what an LLM is asked for."""

import pytest
from hydra import compose, initialize_config_dir

from datamodules.hits import bm25_search
from datamodules.pipeline.query_types import load_query_types
from datamodules.text.languages import languages, stemmer_for
from helpers.languages import PASSAGES, passages
from helpers.runs import CONF


@pytest.mark.parametrize("code, stemmer", [("de", "german"), ("fr", "french"), ("ru", "russian"), ("ja", None)])
def test_the_stemmer_follows_the_language(code, stemmer):
    texts = [text for _, text in passages(code)]
    assert languages(texts).most_common(1)[0][0] == code
    assert stemmer_for(texts) == stemmer


def test_several_languages_and_no_text_have_no_stemmer():
    mixed = [text for code in PASSAGES for _, text in passages(code)]
    assert len(languages(mixed)) >= 5 and stemmer_for(mixed) is None
    assert stemmer_for([]) is None and stemmer_for(["", " "]) is None


def test_bm25_stems_in_the_language_or_compares_words_as_they_are():
    texts = ["Die Werften reparieren hölzerne Boote.", "Der Bäcker verkauft Brote.", "Das Boot liegt im Hafen."]
    stemmed = bm25_search(texts, ["Reparatur hölzernes Boot"], 3, language="german").rows[0]
    assert stemmed[0] == 0 and set(stemmed[:2]) == {0, 2}  # Boote, hölzerne
    as_they_are = bm25_search(texts, ["Reparatur hölzernes Boot"], 3, language=None).rows[0]
    assert as_they_are[0] == 2 and as_they_are[1] == -1


def test_a_model_is_asked_for_the_texts_language_where_it_is_not_english():
    [kind] = load_query_types(["question"])
    other = kind.in_the_texts_language()
    assert other.instruction == f"{kind.instruction} Write in the language of the text."
    assert other.examples == kind.examples and kind.conversation(None, "x", []) != other.conversation(None, "x", [])


@pytest.mark.parametrize("language, asks", [("en", False), ("de", True), ("null", True)])
def test_generate_asks_by_its_setting(tmp_path, small_scifact, tiny_chat_model, language, asks):
    from experiments.preparation.pipeline import Pipeline

    options = [f"corpus={small_scifact}", f"output_dir={tmp_path}", f"generate.language={language}"]
    options += [
        "queries={synthetic: {source: generated}}",
        f"generator.model={tiny_chat_model}",
        "generator.engine=transformers",
    ]
    with initialize_config_dir(str(CONF / "prepare"), version_base="1.3"):
        stage = Pipeline(compose("prepare", options))._generate_types()
    assert all(kind.instruction.endswith("in the language of the text.") == asks for kind in stage)

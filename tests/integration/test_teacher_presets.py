"""Every teacher preset scores candidates through `prepare`, on a tiny random model of its architecture."""

import importlib.util
import json
import math
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest

from helpers.chat_server import common_words, grader, ranker, serving
from helpers.processes import Forks
from helpers.runs import CONF, prepare
from helpers.teacher_models import bert_classifier, byte_pairs, layered_gemma, save_model, size, unigrams

pytestmark = pytest.mark.slow

PRESETS = sorted(path.stem for path in (CONF / "teacher").glob("*.yaml") if not path.stem.startswith("_"))


def bert(folder, texts):
    return bert_classifier(folder, texts, 1, max_position_embeddings=512)


def xlm_roberta(folder, texts):
    sizes = size(vocab_size=len(unigrams(folder, texts, t5=False)), max_position_embeddings=514, type_vocab_size=1)
    config = {**sizes, "pad_token_id": 0, "num_labels": 1}
    return save_model(folder, "XLMRobertaForSequenceClassification", "XLMRobertaConfig", 15.0, **config)


def t5(folder, texts):
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    vocabulary = len(unigrams(folder, texts)) + 7
    return save_model(folder, "T5ForConditionalGeneration", "T5Config", 2.0, **sizes, vocab_size=vocabulary)


def decoder(family, **more):
    def make(folder, texts):
        tokenizer = byte_pairs(folder, texts, ("<|im_start|>", "<|endoftext|>", "<|im_end|>"), roberta=False)
        sizes = size(num_key_value_heads=1, head_dim=16, vocab_size=len(tokenizer), max_position_embeddings=1024)
        return save_model(folder, f"{family}ForCausalLM", f"{family}Config", 8.0, **sizes, pad_token_id=1, **more)

    return make


def gemma(folder, texts):
    """With as many layers as the preset's settings name."""
    return layered_gemma(folder, texts, num_hidden_layers=26, start_layer=8, max_position_embeddings=512)


MODELS = {
    "classifier": bert,
    "minilm_cross_encoder": bert,
    "vllm": bert,
    "bge_reranker_v2_m3": xlm_roberta,
    "bge_gemma_lightweight": gemma,
    "monot5_3b": t5,
    "rankt5_3b": t5,
    "qwen3_reranker_0_6b": decoder("Qwen3"),
    "query_likelihood": decoder("Llama", tie_word_embeddings=True),
}
SERVERS = {
    "web_api": lambda r: {"scores": [common_words(r["query"], passage) for passage in r["documents"]]},
    "listwise_llm": ranker,
    "judge": grader,
}


@contextmanager
def settings(name, folder, texts):
    """What a user adds to ``teacher=NAME``."""
    if name in SERVERS:
        with serving(lambda _, request: (200, SERVERS[name](request))) as url:
            chat = ["teacher.model=tiny", f"teacher.base_url={url}/v1"]
            yield [f"teacher.url={url}"] if name == "web_api" else chat
    elif name == "ensemble":
        members = {"a": "minilm_cross_encoder", "b": "query_likelihood"}
        made = {member: MODELS[preset](folder / member, texts) for member, preset in members.items()}
        yield [f"+teacher@teacher.members.{member}={preset}" for member, preset in members.items()] + [
            f"teacher.members.{member}.model={made[member]}" for member in members
        ]
    else:
        yield [] if name == "fusion" else [f"teacher.model={MODELS[name](folder, texts)}"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_scores_candidates_on_a_model_of_its_architecture(name, tiny_model, small_scifact, texts, tmp_path):
    if name == "vllm" and not importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is not installed")
    for folder in ("model", "model/a", "model/b"):
        (tmp_path / folder).mkdir()
    options = [
        f"corpus={small_scifact}",
        "queries={human: {source: judged, filter: false}}",
        f"encoder.model={tiny_model}",
        "mine.depth=5",
        "mine.candidates=5",
        f"output_dir={tmp_path}",
        "until=score",
    ]
    with settings(name, tmp_path / "model", texts) as own:
        options += [f"teacher={name}", *own]
        if name == "vllm":
            # as in test_vllm.py
            with Forks("bm25s", "vllm", "vllm.v1.engine.llm_engine", OMP_NUM_THREADS=None) as forks:
                forks.apart(prepare, options)
        else:
            prepare(options)
    [table] = tmp_path.glob("prepare/score-*/scored.parquet")
    lists = pq.read_table(table)["teacher_scores"].to_pylist()
    assert len(lists) == 40
    for scores in lists:
        assert all(map(math.isfinite, scores)) and scores == sorted(scores, reverse=True)
    assert sum(len(set(scores)) > 1 for scores in lists) > 30
    manifest = json.loads(table.with_name("manifest.json").read_text())
    assert manifest["settings"]["members"] and str(tmp_path) not in json.dumps(manifest["settings"])

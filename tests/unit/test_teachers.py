"""Teachers against plain computations: one pair at a time, without batches, in float64."""

from __future__ import annotations

import json
import math
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

from helpers.teacher_models import (
    bert_classifier,
    byte_pairs,
    layered_gemma,
    real_and_odd_pairs,
    save_model,
    size,
    unigrams,
    word_pieces,
)
from retriever.errors import InputError
from retriever.teachers import Ensemble, RetrievedPassages, RunFusion, Teacher
from retriever.teachers.layered_gemma import LayeredGemma
from retriever.teachers.pair_tokens import PairTokenizer
from retriever.teachers.sequence_classifier import SequenceClassifier
from retriever.teachers.t5 import MonoT5, RankT5
from retriever.teachers.vllm_scorer import VllmScorer
from retriever.teachers.web_api import WebApi
from retriever.teachers.yes_no import YesNo

CPU = {"device": "cpu"}
TEMPLATE = ["<|im_start|>judge\n", "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}", "<|im_end|>\n"]


@pytest.fixture(scope="module")
def pairs(scifact):
    return real_and_odd_pairs(scifact)


@pytest.fixture(scope="module")
def bert(tmp_path_factory, texts):
    """One-logit, two-class and three-class BERTs, and one without a head, on one tokenizer."""
    base = tmp_path_factory.mktemp("bert")
    folders = {labels: bert_classifier(base / str(labels), texts, labels) for labels in (1, 2, 3)}
    tokenizer = word_pieces(base / "none", texts)
    folders["none"] = save_model(base / "none", "BertModel", "BertConfig", **size(vocab_size=len(tokenizer)))
    return folders


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = byte_pairs(folder, texts, ("<|im_start|>", "<|endoftext|>", "<|im_end|>"), roberta=False)
    sizes = size(num_key_value_heads=1, head_dim=16, vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=None)
    return save_model(folder, "Qwen3ForCausalLM", "Qwen3Config", 15.0, **sizes)


def exact(auto_class, folder):
    """The model in float64, and its tokenizer."""
    return auto_class.from_pretrained(folder).double().eval(), AutoTokenizer.from_pretrained(folder)


def check(teacher, pairs, expected, tolerance=2e-4):
    """The same scores as the plain computation, in the order given, whatever else is in the batch."""
    queries, passages = pairs
    done = []
    found = teacher.score_pairs(queries, passages, done.append)
    assert found.scores.dtype == np.float32 and found.truncated.dtype == bool
    assert sum(done) == len(queries) and len(done) > 1
    np.testing.assert_allclose(found.scores, [float(s) for s, _ in expected], atol=tolerance, rtol=tolerance)
    assert found.truncated.tolist() == [cut for _, cut in expected]
    assert 0 < found.truncated.sum() < len(queries)
    assert np.std(found.scores) > 50 * tolerance  # or the comparison would say nothing

    order = np.random.default_rng(0).permutation(len(queries))
    turned = teacher.score_pairs([queries[i] for i in order], [passages[i] for i in order])
    np.testing.assert_allclose(turned.scores, found.scores[order], rtol=2e-5, atol=1e-5)
    for i in (0, 5, 24, 27):
        alone = teacher.score_pairs([queries[i]], [passages[i]])
        np.testing.assert_allclose(alone.scores[0], found.scores[i], rtol=2e-5, atol=1e-5)
    assert found.scores[-1] == pytest.approx(found.scores[1], rel=2e-5)  # the same pair twice
    empty = teacher.score_pairs([], [])
    assert len(empty.scores) == len(empty.truncated) == 0
    assert json.loads(json.dumps(teacher.description()))["score"]


def classifier_scores(folder, pairs, max_length, positive=1):
    model, tokenizer = exact(AutoModelForSequenceClassification, folder)
    for query, passage in zip(*pairs, strict=True):
        # in lists, for an empty passage outside of one counts as none
        full = tokenizer([query], [passage])["input_ids"][0]
        inputs = tokenizer([query], [passage], truncation="only_second", max_length=max_length, return_tensors="pt")
        if getattr(model.config, "type_vocab_size", 0) < 2:
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        score = logits[0] if len(logits) == 1 else logits[positive] - logits[1 - positive]
        yield score, len(full) > max_length


@pytest.mark.parametrize(("labels", "positive"), [(1, 1), (2, 1), (2, 0)])
def test_bert_classifier(bert, pairs, labels, positive):
    teacher = SequenceClassifier(
        bert[labels], max_length=128, query_max_length=90, positive_label=positive, token_budget=600, **CPU
    )
    check(teacher, pairs, list(classifier_scores(bert[labels], pairs, 128, positive)))


FAMILIES = {
    "Roberta": (byte_pairs, {"pad_token_id": 1, "type_vocab_size": 1}),
    "XLMRoberta": (lambda f, t: unigrams(f, t, t5=False), {"pad_token_id": 0, "type_vocab_size": 1}),
    "ModernBert": (byte_pairs, {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "eos_token_id": 2}),
    "DebertaV2": (
        word_pieces,
        {"type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32},
    ),
}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name != "Roberta")) for name in FAMILIES]
)
def test_classifier_families(family, tmp_path, texts, pairs):
    make_tokenizer, settings = FAMILIES[family]
    tokenizer = make_tokenizer(tmp_path, texts)
    sizes = size(vocab_size=len(tokenizer), num_labels=1, **settings)
    folder = save_model(tmp_path, f"{family}ForSequenceClassification", f"{family}Config", 15.0, **sizes)
    teacher = SequenceClassifier(folder, max_length=128, query_max_length=90, token_budget=600, **CPU)
    check(teacher, pairs, list(classifier_scores(folder, pairs, 128)), 1e-3)


@pytest.mark.parametrize("make", [word_pieces, byte_pairs, lambda f, t: unigrams(f, t, t5=False)])
def test_pairs_are_cut_as_only_second_cuts_them(make, tmp_path, texts, pairs):
    tokenizer = make(tmp_path, texts)
    for max_length in (97, 98, 99, 150):
        found = PairTokenizer(tokenizer, max_length, 90)(*pairs)
        for i, (query, passage) in enumerate(zip(*pairs, strict=True)):
            expected = tokenizer([query], [passage], truncation="only_second", max_length=max_length)
            row = slice(*found.tokens.offsets[i : i + 2])
            assert found.tokens.ids[row].tolist() == expected["input_ids"][0]
            if "token_type_ids" in expected:
                assert found.types.ids[row].tolist() == expected["token_type_ids"][0]


def test_long_queries_are_cut_and_told(bert, caplog):
    query, passage = "protein " * 60, "cells " * 60
    teacher = SequenceClassifier(bert[1], max_length=40, query_max_length=20, **CPU)
    with caplog.at_level("WARNING"):
        found = teacher.score_pairs([query, "a protein"], [passage, "cells"])
    assert "1 of 2 pairs have a query of more than 20 tokens" in caplog.text
    assert found.truncated.tolist() == [True, False]
    pair = teacher.pair_tokenizer([query], [passage])
    assert len(pair.tokens.ids) == 40
    cut_query = query[: pair.query_ends[0]]
    assert len(teacher.tokenizer(cut_query, add_special_tokens=False)["input_ids"]) == 20
    expected = teacher.tokenizer(cut_query, passage, truncation="only_second", max_length=40)["input_ids"]
    assert pair.tokens.ids.tolist() == expected


@pytest.mark.parametrize("pad", [None, 0])
def test_decoder_classifier_with_a_template(tmp_path, texts, pairs, pad):
    tokenizer = byte_pairs(tmp_path, texts, ("<|im_start|>", "<|endoftext|>", "<|im_end|>"), roberta=False)
    sizes = size(num_key_value_heads=1, head_dim=16, vocab_size=len(tokenizer), num_labels=1)
    folder = save_model(
        tmp_path, "Qwen3ForSequenceClassification", "Qwen3Config", 15.0, max_window_layers=2, pad_token_id=pad, **sizes
    )
    template = ["<|im_start|>", "Q: {query}\nD: {passage}", "<|im_end|>"]
    teacher = SequenceClassifier(
        folder, template=template, max_length=128, query_max_length=90, token_budget=600, **CPU
    )
    model, _ = exact(AutoModelForSequenceClassification, folder)
    expected = []
    for query, passage in zip(*pairs, strict=True):
        body = tokenizer(f"Q: {query}\nD: {passage}")["input_ids"]
        ids = [0, *body[:126], 2]
        with torch.no_grad():
            expected.append((model(torch.tensor([ids])).logits[0, 0], len(body) > 126))
    check(teacher, pairs, expected)


def t5_scores(folder, pairs, max_length, closing):
    """First-step logits; of a text that is too long, the closing tokens and all that fits in front of them."""
    model, tokenizer = exact(AutoModelForSeq2SeqLM, folder)
    tail = len(tokenizer(closing)["input_ids"]) if closing else 1  # </s>
    for query, passage in zip(*pairs, strict=True):
        full = tokenizer(f"Query: {query} Document: {passage}{' ' if closing else ''}{closing}")["input_ids"]
        ids = full if len(full) <= max_length else full[: max_length - tail] + full[-tail:]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        yield logits, len(full) > max_length, ids


@pytest.mark.slow
def test_rankt5(t5, pairs):
    teacher = RankT5(t5, max_length=120, query_max_length=80, token_budget=600, **CPU)
    row = AutoTokenizer.from_pretrained(t5).convert_tokens_to_ids("<extra_id_10>")
    check(teacher, pairs, [(logits[row], cut) for logits, cut, _ in t5_scores(t5, pairs, 120, "")])


@pytest.mark.slow
def test_monot5(t5, pairs):
    teacher = MonoT5(t5, max_length=120, query_max_length=80, token_budget=600, **CPU)
    tokenizer = AutoTokenizer.from_pretrained(t5)
    yes, no = (tokenizer.convert_tokens_to_ids(t) for t in ("▁true", "▁false"))
    expected = list(t5_scores(t5, pairs, 120, "Relevant:"))
    scores = [-math.log1p(math.exp(float(logits[no] - logits[yes]))) for logits, _, _ in expected]
    check(teacher, pairs, [(s, cut) for s, (_, cut, _) in zip(scores, expected, strict=True)])

    tokens = teacher.pair_tokenizer(*pairs).tokens
    for i, (_, _, ids) in enumerate(expected):
        assert tokens.ids[slice(*tokens.offsets[i : i + 2])].tolist() == ids
        assert tokenizer.decode(ids).endswith("Relevant:</s>")
    assert tokens.lengths.max() == 120


def test_yes_no(qwen, pairs):
    teacher = YesNo(
        qwen, template=TEMPLATE, instruction="Find it.", max_length=128, query_max_length=80, token_budget=600, **CPU
    )
    model, tokenizer = exact(AutoModelForCausalLM, qwen)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    front, back = (tokenizer(text)["input_ids"] for text in (TEMPLATE[0], TEMPLATE[2]))
    expected = []
    for query, passage in zip(*pairs, strict=True):
        body = tokenizer(f"<Instruct>: Find it.\n<Query>: {query}\n<Document>: {passage}")["input_ids"]
        room = 128 - len(front) - len(back)
        with torch.no_grad():
            logits = model(torch.tensor([front + body[:room] + back])).logits[0, -1, [yes, no]]
        expected.append((logits.log_softmax(-1)[0], len(body) > room))
    check(teacher, pairs, expected)


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("gemma2")
    tokenizer = byte_pairs(folder, texts, ("<bos>", "<pad>", "<eos>"), roberta=False)
    sizes = size(num_key_value_heads=1, head_dim=16, vocab_size=len(tokenizer), final_logit_softcapping=0.2)
    return save_model(folder, "Gemma2ForCausalLM", "Gemma2Config", 3.0, sliding_window=64, pad_token_id=1, **sizes)


def test_yes_no_keeps_what_the_model_does_with_logits(gemma2, pairs):
    """Gemma 2 caps its logits; a head of two rows in its place must not lose that."""
    teacher = YesNo(gemma2, template="Q: {query} D: {passage} ?", max_length=128, token_budget=600, **CPU)
    model, tokenizer = exact(AutoModelForCausalLM, gemma2)
    query, passage = pairs[0][3], pairs[1][0]
    ids = tokenizer(f"Q: {query} D: {passage} ?", return_tensors="pt")["input_ids"]
    rows = tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.no_grad():
        logits = model(ids).logits[0, -1, rows]
        model.config.final_logit_softcapping = None
        uncapped = model(ids).logits[0, -1, rows]
    found = teacher.score_pairs([query], [passage])
    assert found.scores[0] == pytest.approx(float(logits.log_softmax(-1)[0]), abs=1e-4)
    assert found.scores[0] != pytest.approx(float(uncapped.log_softmax(-1)[0]), abs=1e-2)


CODE_OF_THE_HUB = "raise RuntimeError('this was written for another version of transformers')"


@pytest.fixture(scope="module")
def layered(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("layered")
    for name in ("gemma_config.py", "gemma_model.py"):
        (folder / name).write_text(CODE_OF_THE_HUB)
    return layered_gemma(folder, texts, num_hidden_layers=6, start_layer=2, sliding_window=40)


def layered_score(folder, ids, before, after, cutoff, ratio, compressed):
    """One row without padding, in float64, by lists and plain masks."""
    weights = load_file(Path(folder) / "model.safetensors")
    config = Gemma2Config(**json.loads((Path(folder) / "config.json").read_text()))
    config._attn_implementation = "eager"
    model = Gemma2Model(config).double().eval()
    own = {name.removeprefix("model."): w.double() for name, w in weights.items() if name.startswith("model.")}
    model.load_state_dict(own)
    hidden = weights["model.embed_tokens.weight"].double()[ids] * config.hidden_size**0.5
    for number, layer in enumerate(model.layers[:cutoff]):
        if number in compressed:
            middle = hidden[before : len(hidden) - after]
            means = [middle[i : i + ratio].mean(0) for i in range(0, len(middle), ratio)]
            hidden = torch.stack([*hidden[:before], *means, *hidden[len(hidden) - after :]])
        places = torch.arange(len(hidden))
        back = places[:, None] - places
        seen = (back >= 0) & ((back < 40) | (config.layer_types[number] == "full_attention"))
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
        angles = model.rotary_emb(hidden[None], places[None])
        hidden = layer(hidden[None], attention_mask=mask[None, None], position_embeddings=angles)[0]
    logit = weights["lm_head.0.linear_head.weight"][0].double() @ model.norm(hidden)[-1]
    return 30 * torch.tanh(logit / 30)


@pytest.mark.slow
@pytest.mark.parametrize(("cutoff", "ratio", "compressed"), [(None, 1, []), (4, 2, [2]), (5, 4, [1, 3])])
def test_layered_gemma(layered, pairs, cutoff, ratio, compressed):
    teacher = LayeredGemma(
        layered,
        prompt="Does B answer A?",
        cutoff_layer=cutoff,
        compress_ratio=ratio,
        compress_layers=compressed,
        max_length=128,
        query_max_length=80,
        token_budget=600,
        **CPU,
    )
    tokenizer = AutoTokenizer.from_pretrained(layered)
    newline, prompt = tokenizer("\n")["input_ids"], tokenizer("Does B answer A?")["input_ids"]
    expected = []
    for query, passage in zip(*pairs, strict=True):
        asked = [tokenizer.bos_token_id, *tokenizer(f"A: {query}")["input_ids"], *newline]
        told = tokenizer(f"B: {passage}")["input_ids"]
        room = 128 - len(asked) - len(newline + prompt)
        ids = asked + told[:room] + newline + prompt
        with torch.no_grad():
            score = layered_score(layered, ids, len(asked), len(newline + prompt), cutoff, ratio, compressed)
        expected.append((score, len(told) > room))
    check(teacher, pairs, expected)


def test_layered_gemma_in_half_precision(layered, pairs):
    options = {"cutoff_layer": 4, "compress_ratio": 2, "compress_layers": [2], "max_length": 128, **CPU}
    exact, coarse = (LayeredGemma(layered, dtype=d, **options).score_pairs(*pairs) for d in ("float32", "bfloat16"))
    assert np.corrcoef(exact.scores, coarse.scores)[0, 1] > 0.98
    assert (coarse.scores != torch.from_numpy(coarse.scores).bfloat16().float().numpy()).mean() > 0.8


def test_scores_in_bfloat16_do_not_tie(bert, t5, qwen, pairs):
    for teacher in (
        SequenceClassifier(bert[1], max_length=128, dtype="bfloat16", **CPU),
        RankT5(t5, max_length=120, dtype="bfloat16", **CPU),
        YesNo(qwen, template=TEMPLATE, max_length=128, dtype="bfloat16", **CPU),
    ):
        scores = teacher.score_pairs(*pairs).scores
        coarse = torch.from_numpy(scores).bfloat16().float().numpy()
        assert next(iter(teacher.model.parameters())).dtype == torch.bfloat16
        assert (scores != coarse).mean() > 0.9


def test_description_follows_the_weights(bert, tmp_path, texts):
    teacher = SequenceClassifier(bert[1], max_length=64, **CPU)
    before = teacher.description()
    teacher.load()
    assert teacher.description() == before
    assert before["kind"] == "sequence_classifier" and before["name"] == Path(bert[1]).name
    other = SequenceClassifier(bert[2], max_length=64, **CPU).description()
    assert before["weights"] != other["weights"]
    assert bert[1] not in json.dumps(before)


def _refusals():
    def classifier(label, **options):
        return lambda f: SequenceClassifier(f["bert"][label], **({"max_length": 64} | CPU | options))

    return {
        "holds no weights for classifier": classifier("none"),
        "has 3 labels": classifier(3),
        "has 160 positions": classifier(1, max_length=161),
        "positive_label is 2": classifier(2, positive_label=2),
        "teacher.dtype is 'float64'": classifier(1, dtype="float64"),
        "teacher.device is 'gpu'": classifier(1, device="gpu"),
        "nothing is left for the passage": classifier(1, query_max_length=62),
        "must be at least 1 and smaller": classifier(1, query_max_length=64),
        "token_budget is 0": classifier(1, token_budget=0),
        "no such model folder": lambda f: SequenceClassifier("./nowhere"),
        "no config.json": lambda f: SequenceClassifier(str(f["empty"])),
        r"holds no weights for .* no sequence classifier": lambda f: SequenceClassifier(f["t5"], max_length=64, **CPU),
        "as AutoModelForSeq2SeqLM": lambda f: RankT5(f["bert"][1], max_length=64, **CPU),
        r"(?s)Qwen3.*|as AutoModelForSeq2SeqLM": lambda f: MonoT5(f["qwen"], max_length=64, **CPU),
        "no token '<extra_id_99>'": lambda f: RankT5(f["t5"], score_token="<extra_id_99>", **CPU),
        "must hold {passage} exactly once": lambda f: RankT5(f["t5"], template="Query: {query}", **CPU),
        "no causal language model": lambda f: YesNo(
            f["bert"]["none"], template="{query} {passage}", max_length=64, **CPU
        ),
        "as AutoModelForCausalLM": lambda f: YesNo(f["t5"], template="{query} {passage}", **CPU),
        "teacher.yes_token": lambda f: YesNo(
            f["qwen"], template="{query} {passage}", yes_token="jawohl", max_length=64, **CPU
        ),
        r"holds no weights for .* no layered Gemma": lambda f: LayeredGemma(f["qwen"], max_length=128, **CPU),
        "has no head": lambda f: LayeredGemma(f["gemma2"], max_length=128, **CPU),
        "teacher.cutoff_layer is 1; .* has heads at 2 to 6": lambda f: LayeredGemma(
            f["layered"], cutoff_layer=1, max_length=128, **CPU
        ),
        "teacher.compress_layers holds 4": lambda f: LayeredGemma(
            f["layered"], cutoff_layer=4, compress_layers=[4], max_length=128, **CPU
        ),
        "compress_ratio is 3": lambda f: LayeredGemma(f["qwen"], compress_ratio=3),
        "vLLM chooses the device": lambda f: VllmScorer(f["bert"][1], device="cpu"),
    }


@pytest.mark.parametrize(
    "message",  # to name another auto class, transformers imports them all
    [pytest.param(m, marks=[pytest.mark.slow] * (m == "as AutoModelForCausalLM")) for m in _refusals()],
)
def test_refusals(message, bert, t5, qwen, layered, gemma2, tmp_path):
    folders = {"bert": bert, "t5": t5, "qwen": qwen, "layered": layered, "gemma2": gemma2, "empty": tmp_path}
    with pytest.raises(InputError, match=message):
        _refusals()[message](folders).score_pairs(["a"], ["b"])


def test_numbers_of_queries_and_passages_must_be_equal(bert):
    with pytest.raises(InputError, match="2 queries and 1 passages"):
        SequenceClassifier(bert[1], max_length=64, **CPU).score_pairs(["a", "b"], ["c"])


def test_scores_that_are_no_numbers_are_refused(bert):
    teacher = SequenceClassifier(bert[1], max_length=64, **CPU)
    teacher.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="gave nan as the score of pair 0"):
        teacher.score_pairs(["a"], ["b"])


class Plain(Teacher):
    """The least teacher: what it was given for each pair."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, queries, passages):
        return self.scores

    def description(self):
        return {"kind": "plain", "scores": self.scores, "absent": None}


def test_a_plain_teacher_is_score_and_description():
    done = []
    found = Plain([1, 2.5]).score_pairs(["a", "b"], ["c", "d"], done.append)
    assert found.scores.tolist() == [1, 2.5] and found.scores.dtype == np.float32
    assert found.truncated.tolist() == [False, False] and done == [2]
    assert str(Plain([1])) == "kind plain, scores [1]"
    assert Ensemble.of(Plain([1])).description() == {
        "members": {"teacher": {"kind": "plain", "scores": [1], "absent": None}},
        "weights": {"teacher": 1.0},
    }
    for wrong, message in {
        (1, 2, 3): r"Plain.score gave an array \[3\] for 2 pairs",
        ("x", 1): "Plain.score gave what is no list of numbers",
        (1, None): "Plain gave nan as the score of pair 1|no list of numbers",
        (1, float("inf")): "Plain gave inf as the score of pair 1",
    }.items():
        with pytest.raises(InputError, match=message):
            Plain(list(wrong)).score_pairs(["a", "b"], ["c", "d"])


def test_fusion_and_ensemble_are_teachers_like_others():
    texts = RetrievedPassages(["c", "d"], {"bm25": np.array([0.5, 0.0]), "dense": np.array([1.0, 0.2])})
    assert texts[1] == "d" and list(texts) == ["c", "d"]
    fusion = RunFusion({"dense": 0.75, "bm25": 0.25})
    assert fusion.score(["a", "b"], texts).tolist() == np.array([0.875, 0.15], np.float32).tolist()
    assert RunFusion().score(["a", "b"], texts).tolist() == np.array([0.75, 0.1], np.float32).tolist()
    both = Ensemble({"fusion": fusion, "plain": Plain([7, 9])}, {"fusion": 3})
    np.testing.assert_allclose(both.score(["a", "b"], texts), [0.75, 0.25])
    with pytest.raises(InputError, match="give it RetrievedPassages"):
        fusion.score(["a"], ["c"])
    with pytest.raises(InputError, match=r"teacher.members.both is an ensemble itself"):
        Ensemble({"both": both})
    with pytest.raises(InputError, match=r"The teacher is a builtins.dict; it must derive from retriever.teachers"):
        Ensemble.of({})


@pytest.fixture
def web_api():
    """Address of a server that scores documents by query and length, and what it was asked.

    It answers two requests at a time, every first try of a request with status 503, and nobody without the key.
    """
    asked, two = [], threading.Barrier(2)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = 200, {"scores": [len(request["query"]) + len(d) / 8 for d in request["documents"]]}
            if self.headers["Authorization"] != "Bearer a key":
                status, answer = 401, {"error": "who are you?"}
            elif self.path == "/wrong":
                answer = {"scores": answer["scores"][1:]}
            elif request not in asked:
                status, answer = 503, {}
                asked.append(request)
                two.wait(timeout=10)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_web_api_scores_in_parallel_and_is_asked_again(web_api, monkeypatch):
    url, asked = web_api
    monkeypatch.setenv("SOME_KEY", "a key")
    queries, passages = ["naïve", "b", "naïve", "naïve", "c"], ["one", "three", "", "日本語 🙂", "two\n"]
    with initialize_config_module("experiments.conf", version_base="1.3"):
        settings = [f"teacher.url={url}", "teacher.key_variable=SOME_KEY", "teacher.documents_per_request=2"]
        config = compose(overrides=["+teacher=web_api", "teacher.parallel=2", "teacher.name=v1", *settings])
    teacher = instantiate(config.teacher)
    done = []
    found = teacher.score_pairs(queries, passages, done.append)
    assert found.scores.tolist() == [len(q) + len(p) / 8 for q, p in zip(queries, passages, strict=True)]
    assert sum(done) == 5 and not found.truncated.any()
    expected = [("b", ["three"]), ("c", ["two\n"]), ("naïve", ["one", ""]), ("naïve", ["日本語 🙂"])]
    assert sorted((request["query"], request["documents"]) for request in asked) == expected
    assert teacher.score([], []).tolist() == []
    assert teacher.description() == {"kind": "web API", "name": "v1", "documents_per_request": 2}
    assert WebApi(url).description()["name"] == url

    with pytest.raises(InputError, match=r"answered with status 401: .*who are you.*TEACHER_API_KEY is not set"):
        WebApi(url).score(["a"], ["b"])
    with pytest.raises(InputError, match=r"answered '\{\"scores\": \[\]\}' for 1 documents"):
        WebApi(f"{url}/wrong", key_variable="SOME_KEY").score(["a"], ["b"])
    with pytest.raises(InputError, match=r"\(after 1 retries\)\. Is the server there"):
        WebApi("http://127.0.0.1:9", retries=1).score(["a"], ["b"])
    with pytest.raises(InputError, match=r"teacher\.url is an address with a user in it") as refused:
        WebApi("http://me:secret@host/score")
    assert "secret" not in str(refused.value)
    with pytest.raises(InputError, match=r"teacher\.parallel is 0"):
        WebApi(url, parallel=0)


PRESETS = {
    "classifier": "SequenceClassifier",
    "minilm_cross_encoder": "SequenceClassifier",
    "bge_reranker_v2_m3": "SequenceClassifier",
    "bge_gemma_lightweight": "LayeredGemma",
    "rankt5_3b": "RankT5",
    "monot5_3b": "MonoT5",
    "qwen3_reranker_0_6b": "YesNo",
    "vllm": "VllmScorer",
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    with initialize_config_module("experiments.conf", version_base="1.3"):
        overrides = [] if preset not in ("classifier", "vllm") else ["teacher.model=some/model"]
        config = compose(overrides=[f"+teacher={preset}", *overrides])
    teacher = instantiate(config.teacher)
    assert type(teacher).__name__ == PRESETS[preset]
    known = json.loads(json.dumps(teacher.description()))
    assert known["name"] == config.teacher.model and known["max_length"] == 512
    if preset == "qwen3_reranker_0_6b":
        assert known["template"][0].endswith('can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n')
        assert "Instruct provided. Note that" in known["template"][0]
        assert "retrieve relevant passages that answer the query\n<Query>: {query}" in known["template"][1]
        assert known["template"][2] == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_vllm_refuses_two_classes(bert):
    with pytest.raises(InputError, match="has 2 labels; vLLM scores classifiers of one alone"):
        VllmScorer(bert[2], max_length=64).score_pairs(["a"], ["b"])


def test_vllm_absent(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"not installed: pip install '\.\[gpu\]'"):
        VllmScorer(bert[1], max_length=64).score_pairs(["a"], ["b"])

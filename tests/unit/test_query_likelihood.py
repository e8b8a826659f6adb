"""Query likelihood against a plain computation: one pair at a time, whole, without a cache, in float64."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from helpers.teacher_models import byte_pairs, save_model, size, unigrams
from retriever.errors import InputError
from retriever.teachers.query_likelihood import QueryLikelihood

TEMPLATE = ["Passage: {passage}\nPlease write a question.\nQuestion:", " {query}"]
SETTINGS = {"template": TEMPLATE, "max_length": 96, "query_max_length": 24, "device": "cpu"}


@pytest.fixture(scope="module")
def pairs(scifact):
    """6 queries for each of 5 passages, of all lengths; and the odd ones."""
    corpus, queries, _ = scifact
    asked = [query[: 12 + 14 * n] for n, query in enumerate(list(queries.values())[:6])]
    told = [text[: 20 + 120 * n] for n, text in enumerate(corpus.texts.slice(0, 5).to_pylist())]
    both = [(query, passage) for query in asked for passage in told]
    both += [
        (asked[0], ""),
        ("", told[1]),
        (" ".join(asked), told[2]),  # longer than a query may be
        ("Is {passage} a {query}?", "{query} and {passage}\nQuestion: true"),
        ("naïve  café ﬁ", "  two  spaces, a tab\tand\na line — 日本語 🙂 " * 6),
    ]
    return [query for query, _ in both], [passage for _, passage in both]


def qwen(folder, texts):
    tokenizer = byte_pairs(folder, texts, ("<|im_start|>", "<|endoftext|>", "<|im_end|>"), roberta=False)
    sizes = size(num_key_value_heads=1, head_dim=16, vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=None)
    return save_model(folder, "Qwen3ForCausalLM", "Qwen3Config", 8.0, **sizes)


def llama(folder, texts):
    """Its tokenizer puts ``<s>`` in front of a text and ``</s>`` behind it."""
    tokenizer = unigrams(folder, texts, t5=False)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<s>"}))
    sizes = size(num_key_value_heads=2, vocab_size=len(tokenizer), bos_token_id=3)
    return save_model(folder, "LlamaForCausalLM", "LlamaConfig", 8.0, **sizes)


def gpt2(folder, texts):
    """Learned positions."""
    tokenizer = byte_pairs(folder, texts, roberta=False)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 160, "vocab_size": len(tokenizer)}
    return save_model(folder, "GPT2LMHeadModel", "GPT2Config", 8.0, **sizes, bos_token_id=0, eos_token_id=2)


def gemma2(folder, texts):
    """Every second layer sees 16 tokens."""
    tokenizer = byte_pairs(folder, texts, ("<bos>", "<pad>", "<eos>"), roberta=False)
    sizes = size(num_key_value_heads=1, head_dim=16, vocab_size=len(tokenizer), pad_token_id=1)
    return save_model(folder, "Gemma2ForCausalLM", "Gemma2Config", 4.0, sliding_window=16, **sizes)


def expected(folder, queries, passages, begin, end=()):
    """The mean log-likelihood of the query's tokens, and whether the passage is cut."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto_class = AutoModelForSeq2SeqLM if end else AutoModelForCausalLM
    model = auto_class.from_pretrained(folder).double().eval()
    for query, passage in zip(queries, passages, strict=True):
        text = TEMPLATE[0].replace("{passage}", passage, 1)
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        prompt, room = found["input_ids"], 96 - 24 - len(begin) - len(end)
        closing = sum(last > len("Passage: " + passage) for _, last in found["offset_mapping"])
        if cut := len(prompt) > room:
            prompt = prompt[: room - closing] + prompt[-closing:]
        prompt = [*begin, *prompt, *end]
        asked = tokenizer(f" {query}", add_special_tokens=False)["input_ids"][:24]
        with torch.no_grad():
            if end:
                so_far = torch.tensor([[0, *asked]])
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=so_far).logits[0]
            else:
                logits = model(torch.tensor([prompt + asked])).logits[0, len(prompt) - 1 :]
        total = sum(float(logits[place].log_softmax(-1)[token]) for place, token in enumerate(asked))
        yield total / max(1, len(asked)), cut


KINDS = {"qwen": (qwen, []), "llama": (llama, [3]), "gpt2": (gpt2, []), "gemma2": (gemma2, [])}


@pytest.fixture(scope="module", params=[*KINDS, "t5"])
def model(request, tmp_path_factory, texts, t5, pairs):
    """A folder, and what the plain computation gives for the pairs."""
    if request.param == "t5":
        return t5, list(expected(t5, *pairs, [], [1]))
    make, begin = KINDS[request.param]
    folder = make(tmp_path_factory.mktemp(request.param), texts)
    return folder, list(expected(folder, *pairs, begin))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [100, 700, 16384])
def test_the_plain_computation_is_met_in_any_batch_and_order(model, pairs, budget):
    folder, plain = model
    queries, passages = pairs
    teacher = QueryLikelihood(folder, token_budget=budget, **SETTINGS)
    done = []
    found = teacher.score_pairs(queries, passages, done.append)
    assert sum(done) == len(queries)
    np.testing.assert_allclose(found.scores, [score for score, _ in plain], atol=1e-4)
    assert found.truncated.tolist() == [cut for _, cut in plain]
    assert 5 < found.truncated.sum() < len(queries) - 5 and np.std(found.scores) > 0.05
    order = np.random.default_rng(0).permutation(len(queries))
    turned = teacher.score_pairs([queries[i] for i in order], [passages[i] for i in order])
    np.testing.assert_allclose(turned.scores, found.scores[order], atol=2e-5)
    for i in (0, 4, 30, 31, 32):
        alone = teacher.score_pairs([queries[i]], [passages[i]])
        np.testing.assert_allclose(alone.scores[0], found.scores[i], atol=2e-5)
    assert len(teacher.score_pairs([], []).scores) == 0


def test_a_passage_is_read_once_for_all_its_queries(model, pairs):
    queries, passages = pairs[0][:30], pairs[1][:30]
    teacher = QueryLikelihood(model[0], token_budget=16384, **SETTINGS)
    teacher.load()
    read = []
    for part in teacher.model.modules():
        if isinstance(part, torch.nn.Embedding) and part.num_embeddings == teacher.model.config.vocab_size:
            part.register_forward_hook(lambda _, ids, __: read.append(ids[0].shape))
    teacher.score_pairs(queries, passages)
    assert read[0][0] == len(set(passages)) == 5 and read[0][1] <= 72
    assert all(shape[0] == 30 and shape[1] <= 24 for shape in read[1:]) and len(read) <= 2


def test_equal_passages_of_different_queries_are_equally_cut(model):
    """Whatever the query's length, the passage leaves room for the longest."""
    teacher = QueryLikelihood(model[0], **SETTINGS)
    pairs = teacher.pair_tokenizer(["a", "a long query of many words " * 9], ["cells " * 200] * 2)
    prompts = [
        pairs.tokens.ids[start : end - after].tolist()
        for start, end, after in zip(pairs.tokens.offsets[:-1], pairs.tokens.offsets[1:], pairs.after, strict=True)
    ]
    assert prompts[0] == prompts[1] and len(prompts[0]) == 72
    assert pairs.query_truncated.tolist() == [False, True] and pairs.tokens.lengths[1] == 96
    assert "Question:" in teacher.tokenizer.decode(prompts[0][-12:]).replace(" ", "")


def test_half_precision_keeps_scores_apart(model, pairs):
    teacher = QueryLikelihood(model[0], dtype="bfloat16", **SETTINGS)
    scores = teacher.score_pairs(*pairs).scores
    assert next(iter(teacher.model.parameters())).dtype == torch.bfloat16
    assert (scores != torch.from_numpy(scores).bfloat16().float().numpy()).mean() > 0.8
    assert np.corrcoef(scores, [score for score, _ in model[1]])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (["{passage} {query}"], "must be a prompt with"),
        (["Passage: {query}", " {passage}"], "must be a prompt with"),
        (["{passage}", "Question: {query}"], "must be a prompt with"),
        (["{passage}", "{query}"], "needs words beside"),
    ],
)
def test_templates_that_are_refused(template, message, tmp_path, texts):
    with pytest.raises(InputError, match=message):
        QueryLikelihood(qwen(tmp_path, texts), **SETTINGS | {"template": template}).load()


def test_the_description_holds_what_decides(tmp_path, texts):
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = compose(overrides=["+teacher=query_likelihood", f"teacher.model={qwen(tmp_path, texts)}"])
    known = json.loads(json.dumps(instantiate(config.teacher).description()))
    assert known["kind"] == "query_likelihood" and len(known["weights"]) == 1 and known["dtype"] == "float32"
    assert (known["max_length"], known["query_max_length"]) == (512, 64)
    assert known["template"][0].endswith("based on this passage.\nQuestion:") and known["template"][1] == " {query}"

"""Cross-encoders: pairs equal the tokenizer's, losses an enumeration, whole runs, re-ranking, export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from sentence_transformers import CrossEncoder as TheirCrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from callbacks import CrossEncoderRanker, Evaluator, History, Metrics, Ranking, Reading
from callbacks.evaluation import reranking
from callbacks.evaluation.metrics import score_run
from callbacks.evaluation.sets import open_sets
from datamodules.batches import ListBatches
from datamodules.caches import embed
from datamodules.corpus import load_evaluation_set
from datamodules.datamodule import QueryListDataModule
from datamodules.hits import bm25_search
from datamodules.specs import read_evaluation_specs
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.processes import finish, start_ranks
from helpers.runs import config_of, metrics, weights
from retriever.batch import BatchNeeds, RetrievalBatch
from retriever.cross_encoder.cross_encoder import CrossEncoder
from retriever.cross_encoder.module import CrossEncoderModule, choose_candidates
from retriever.encoder import encoding
from retriever.encoder.encoding import encode
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError
from retriever.losses.listwise import listwise_cross_entropy
from retriever.query_list_module import QueryListModule

LENGTHS = {"query_max_length": 60, "passage_max_length": 128, "pair_max_length": 96}


@pytest.fixture(scope="module")
def byte_level_models(tmp_path_factory, scifact):
    """Random RoBERTa and ModernBERT backbones with byte-level BPE tokenizers of those families."""
    folders = {}
    for family, (first, last) in {"roberta": ("<s>", "</s>"), "modernbert": ("[CLS]", "[SEP]")}.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = [first, "<pad>", last, "<unk>"]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(list(scifact[1].values())[:300], trainer)
        if family == "roberta":
            tokenizer.post_processor = processors.RobertaProcessing((last, 2), (first, 0), add_prefix_space=False)
        else:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{first} $A {last}",
                pair=f"{first} $A {last} $B:1 {last}:1",
                special_tokens=[(first, 0), (last, 2)],
            )
        folder = folders[family] = tmp_path_factory.mktemp(family)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            cls_token=first,
            sep_token=last,
            model_input_names=["input_ids", "attention_mask"],
        ).save_pretrained(folder)
        size = {
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 130,
            "pad_token_id": 1,
        }
        torch.manual_seed(0)
        if family == "roberta":
            RobertaModel(RobertaConfig(**size)).save_pretrained(folder)
        else:
            ids = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
            ModernBertModel(ModernBertConfig(**size, **ids)).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def bert_model(tiny_model, tmp_path_factory):
    """The tiny model with a tokenizer that gives token types, as BERT's does."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("bert") / "model")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    AutoTokenizer.from_pretrained(tiny_model, model_input_names=names).save_pretrained(folder)
    return folder


@pytest.fixture(params=["bert", "roberta", "modernbert"])
def family_model(request, bert_model, byte_level_models):
    """A folder for each family of tokenizers and models."""
    return bert_model if request.param == "bert" else byte_level_models[request.param]


def tiny(folder, **options):
    torch.manual_seed(0)
    encoder = CrossEncoder.from_pretrained(str(folder), **{**LENGTHS, **options})
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)  # a random model's logits hardly differ otherwise
    return encoder


def texts(scifact, count):
    """Claims and abstracts; some pairs are short, some are cut."""
    queries = list(scifact[1].values())[:count]
    titles, whole = scifact[0].titles[:count].to_pylist(), scifact[0].passages[:count].to_pylist()
    return queries, [whole[i] if i % 3 else titles[i] for i in range(count)]


def reference(folder, tokenizer_folder, queries, passages, max_length=96):
    """Logits by plain transformers, every pair alone."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    scores = []
    for query, passage in zip(queries, passages, strict=True):
        batch = tokenizer(query, passage, truncation="only_second", max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            scores.append(model(**batch).logits.item())
    return np.array(scores)


def pairs_of(encoder, queries, passages):
    rows = np.arange(len(queries))
    return encoder.pairs(encoder.tokenize(queries, "query"), encoder.tokenize(passages, "passage"), rows, rows)


@pytest.mark.slow
def test_pairs_are_those_of_the_tokenizer(family_model, scifact):
    encoder, tokenizer = tiny(family_model), AutoTokenizer.from_pretrained(family_model)
    queries, passages = texts(scifact, 80)
    short = [i for i, q in enumerate(queries) if len(tokenizer(q)["input_ids"]) <= 60]
    queries, passages = [queries[i] for i in short], [passages[i] for i in short]
    pairs = pairs_of(encoder, queries, passages)
    lengths = []
    for i, (query, passage) in enumerate(zip(queries, passages, strict=True)):
        expected = tokenizer(query, passage, truncation="only_second", max_length=96)
        own = slice(pairs.tokens.offsets[i], pairs.tokens.offsets[i + 1])
        assert pairs.tokens.ids[own].tolist() == expected["input_ids"]
        if pairs.types is not None:
            assert pairs.types.ids[own].tolist() == expected["token_type_ids"]
        lengths.append(own.stop - own.start)
    assert (pairs.types is not None) == ("token_type_ids" in expected) == (family_model.name == "model")
    assert len(short) > 60 and max(lengths) == 96 and min(lengths) < 80  # some are cut, some are not


def test_long_query_is_cut_and_leaves_the_passage_room(bert_model):
    encoder = tiny(bert_model)
    pairs = pairs_of(encoder, ["cells " * 200], ["proteins " * 200])
    types = pairs.types.ids
    assert len(types) == 96 and (types == 0).sum() == 60 and (types == 1).sum() == 36


@pytest.mark.slow
def test_exported_model_gives_the_same_logits_everywhere(family_model, scifact, tmp_path):
    encoder = tiny(family_model).eval()
    queries, passages = texts(scifact, 40)
    sizes = [len(ids) for ids in AutoTokenizer.from_pretrained(family_model)(queries)["input_ids"]]
    short = [i for i, size in enumerate(sizes) if size <= 45]  # shorter than what is left of any passage
    queries, passages = [queries[i] for i in short], [passages[i] for i in short]
    pairs = pairs_of(encoder, queries, passages)
    with torch.no_grad():
        ours = encode(encoder, pairs, token_budget=200).numpy()
    assert ours.dtype == np.float32 and len(short) > 20 and np.std(ours) > 1e-4
    folder = encoder.save(tmp_path / "model")
    assert (folder / "model.safetensors").is_file()
    np.testing.assert_allclose(reference(folder, folder, queries, passages), ours, atol=2e-6)
    theirs = TheirCrossEncoder(str(folder), device="cpu")
    np.testing.assert_allclose(theirs.predict(list(zip(queries, passages, strict=True))), ours, atol=2e-6)
    again = CrossEncoder.from_pretrained(str(folder), **LENGTHS)
    assert again.fingerprint() == encoder.fingerprint()
    assert tiny(family_model, pair_max_length=95).fingerprint() != encoder.fingerprint()


def test_checkpointed_micro_batches_give_the_gradient_of_the_whole(family_model, scifact, monkeypatch):
    pairs = pairs_of(tiny(family_model), *texts(scifact, 12))
    calls = []
    original = encoding.checkpoint
    monkeypatch.setattr(encoding, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    gradients = []
    for budget in (100_000, 200):
        encoder = tiny(family_model, dropout=0.0)
        encode(encoder, pairs, budget).logsumexp(0).backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    assert len(calls) >= 5  # of the small budget alone
    for name, expected in gradients[0].items():
        assert expected is not None, name
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-4)


def enumerated(scores, positive, mask):
    """The loss as its docstring has it, by plain exponentials in float64."""
    values = []
    for s, p, m in zip(scores.double().tolist(), positive.tolist(), mask.tolist(), strict=True):
        negatives = [np.exp(x) for x, y, real in zip(s, p, m, strict=True) if real and not y]
        own = [np.exp(x) for x, y, real in zip(s, p, m, strict=True) if real and y]
        values.append(np.mean([-np.log(x / (x + sum(negatives))) for x in own]))
    return torch.tensor(values)


def random_lists(seed, queries=6, columns=9):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, columns, generator=generator, dtype=torch.float64) * 4
    mask = torch.rand(queries, columns, generator=generator) < 0.8
    positive = torch.rand(queries, columns, generator=generator) < 0.3
    positive[:, 0] = mask[:, 0] = True
    mask[0], positive[0] = positive[0], positive[0]  # a query without negatives
    return scores, positive, mask


@pytest.mark.parametrize("seed", range(4))
def test_listwise_cross_entropy_equals_its_enumeration(seed):
    scores, positive, mask = random_lists(seed)
    torch.testing.assert_close(listwise_cross_entropy(scores, positive, mask), enumerated(scores, positive, mask))
    single = listwise_cross_entropy(scores.float(), positive, mask)
    assert single.dtype == torch.float32 and single[0] == 0
    torch.testing.assert_close(single.double(), enumerated(scores, positive, mask), atol=1e-5, rtol=1e-5)
    assert listwise_cross_entropy(scores.bfloat16(), positive, mask).dtype == torch.float32
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: listwise_cross_entropy(s, positive, mask), scores)


def test_listwise_cross_entropy_with_one_positive_is_torchs():
    scores, mask = torch.randn(5, 8), torch.ones(5, 8, dtype=torch.bool)
    positive = torch.zeros(5, 8, dtype=torch.bool)
    positive[:, 3] = True
    expected = torch.nn.functional.cross_entropy(scores, torch.full((5,), 3), reduction="none")
    torch.testing.assert_close(listwise_cross_entropy(scores, positive, mask), expected)


def test_listwise_cross_entropy_is_finite_at_extreme_logits():
    scores = torch.tensor([[1e4, -1e4, 5.0], [-1e4, 1e4, 7.0], [3.0, float("nan"), 9.0]], requires_grad=True)
    positive = torch.tensor([[True, False, False]] * 3)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    loss = listwise_cross_entropy(scores, positive, mask)
    assert loss.tolist() == [0.0, 2e4, 0.0]
    loss.sum().backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[1].tolist() == [-1.0, 1.0, 0.0]


def batch_of(labelled, rows, lengths=None):
    """A batch without texts: passages are their keys; teacher scores fall by 0.1 from rank to rank."""
    keys = sorted({p for part in (*labelled, *rows) for p in part})
    width, most = max(map(len, rows)), max(1, *map(len, labelled))
    index = torch.tensor([[keys.index(p) for p in r] + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in rows])
    scores = (1 - 0.1 * torch.arange(width)).expand(len(rows), width).masked_fill(~mask, 0.0)
    padded = torch.tensor([[*part, *[-1] * (most - len(part))] for part in labelled])
    empty = TokenizedTexts.from_lists([])
    ids = [f"q{i}" for i in range(len(rows))]
    none = torch.full((len(rows),), -1)
    return RetrievalBatch(
        corpus="c",
        query_ids=ids,
        queries=empty,
        passages=empty,
        passage_embeddings=None,
        passage_keys=torch.tensor(keys),
        list_index=index,
        list_mask=mask,
        teacher_scores=scores,
        positive_index=none,
        labelled_keys=padded,
    )


def test_candidates_are_all_positives_and_unlabelled_passages_of_the_ranks():
    batch = batch_of([[30, 99], [11]], [[10, 20, 30, 40, 50, 60], [11, 12, 13]])
    first = choose_candidates(batch, 2, (1, 6), sample=False)
    keys = batch.passage_keys[first.index]
    assert keys[first.mask].tolist() == [30, 99, 10, 20, 11, 12, 13]
    assert keys[first.positive].tolist() == [30, 99, 11]
    assert first.in_list.tolist() == [[True, False, True, True], [True, False, True, True]]
    assert first.teacher_scores[first.in_list].tolist() == pytest.approx([0.8, 1.0, 0.9, 1.0, 0.9, 0.8])
    late = choose_candidates(batch, 7, (4, 5), sample=False)
    assert batch.passage_keys[late.index][late.mask & ~late.positive].tolist() == [40, 50]
    drawn = []
    for seed in (1, 1, 2, 3, 4, 5, 6, 7):
        torch.manual_seed(seed)
        candidates = choose_candidates(batch, 3, (2, 6), sample=True)
        negatives = batch.passage_keys[candidates.index][0][(candidates.mask & ~candidates.positive)[0]]
        assert len(set(negatives.tolist())) == 3 and set(negatives.tolist()) <= {20, 40, 50, 60}
        drawn.append(tuple(sorted(negatives.tolist())))
    assert drawn[0] == drawn[1] and len(set(drawn)) > 2
    with pytest.raises(InputError, match="query 'q1' of c has no positive_ids"):
        choose_candidates(batch_of([[1], []], [[1, 2], [3, 4]]), 1, (1, 2), sample=False)
    with pytest.raises(InputError, match="lacks labelled positives"):
        lacking = batch_of([[1]], [[1, 2]])
        lacking = replace(lacking, labelled_keys=torch.tensor([[7]]))
        choose_candidates(lacking, 1, (1, 2), sample=False)


@pytest.mark.slow
def test_batches_hold_all_labelled_positives_where_asked(tiny_model, tmp_path):
    spec = [{"path": "scifact/lists/human.dev.parquet", "corpus": "scifact"}]
    data = QueryListDataModule(tiny(tiny_model), spec, cache_dir=tmp_path, leak_guard="off", list_length=5)
    data.setup()
    sampler = data.val_dataloader().sampler
    draw = next(iter(sampler))
    batch = ListBatches(data._dev, 5, "top", BatchNeeds(labels=True, all_labels=True))[draw]
    one = ListBatches(data._dev, 5, "top", BatchNeeds(labels=True))[draw]
    held = set(batch.passage_keys.tolist())
    labelled = set(batch.labelled_keys[batch.labelled_keys >= 0].tolist())
    assert labelled <= held and not labelled <= set(one.passage_keys.tolist())
    for made in (one, batch):  # what was there before stays as it was
        torch.testing.assert_close(made.passage_keys[made.positive_index], made.labelled_keys[:, 0])
        torch.testing.assert_close(
            made.passage_keys[made.list_index][made.list_mask], one.passage_keys[one.list_index][one.list_mask]
        )
    several = (batch.labelled_keys >= 0).sum(1)
    assert several.max() >= 2
    candidates = choose_candidates(batch, 3, (1, 5), sample=False)
    assert candidates.positive.sum(1).tolist() == several.tolist()


@pytest.fixture(scope="module")
def tiny_classifier(bert_model, tmp_path_factory):
    """A sequence classifier whose logits differ from pair to pair."""
    return tiny(bert_model).save(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def teacher_run(small_run, tiny_model, tiny_classifier):
    """Overrides for a cross-encoder's run of seconds."""
    return [
        "+exp=teacher/scifact",
        *small_run,
        f"encoder.model={tiny_classifier}",
        f"evaluation.dense.model={tiny_model}",
        "evaluation.dense.passage_max_length=64",
        "evaluation.depth=12",
    ]


def logits_of(folder, data, depth):
    """Re-rank BM25's best by plain transformers: query id → passage id → logit, and BM25's scores likewise."""
    ids, passages = data.corpus.ids.to_pylist(), data.corpus.passages.to_pylist()
    hits = bm25_search(passages, list(data.queries.values()), depth)
    run, first = {}, {}
    for number, (query, text) in enumerate(data.queries.items()):
        rows = hits.rows[number]
        logits = reference(folder, folder, [text] * depth, [passages[row] for row in rows], max_length=120)
        run[query] = {ids[row]: float(logit) for row, logit in zip(rows, logits, strict=True)}
        first[query] = {ids[row]: float(score) for row, score in zip(rows, hits.scores[number], strict=True)}
    return run, first


def read_trec(path):
    run = {}
    for line in path.read_text().splitlines():
        query, _, passage, _, score, _ = line.split()
        run.setdefault(query, {})[passage] = float(score)
    return run


@pytest.mark.slow
def test_run_folder_tells_the_whole_story(teacher_run, small_scifact, tmp_path, capsys):
    folder = tmp_path / "run"
    lengths = ["query_max_length=90", "passage_max_length=128", "pair_max_length=120"]
    results = run_experiment(config_of(*teacher_run, *(f"encoder.{length}" for length in lengths)), folder)
    assert results == json.loads((folder / "results.json").read_text())
    data = load_evaluation_set(str(small_scifact))
    figures, best = results["datasets"]["small"], results["steps"]["best"]
    logits, bm25 = logits_of(folder / "model", data, 12)
    for step, expected, point in ((best, logits, "best"), (0, bm25, "base")):
        run = read_trec(folder / "trec_runs" / "small" / f"step-{step:06d}.trec")
        assert run.keys() == expected.keys()
        for query in run:
            assert run[query] == pytest.approx(expected[query], abs=1e-5)
        means, per_query = score_run(data.qrels, run)
        assert {metric: points[point] for metric, points in figures.items()} == means
        assert json.loads((folder / "per_query" / "small" / f"step-{step:06d}.json").read_text()) == per_query
    spread = np.std([list(scores.values()) for scores in logits.values()], axis=1)
    assert spread.min() > 1e-3  # so 1e-5 tells passages apart
    table = json.loads((folder / "reranking.json").read_text())
    orders = table["ndcg@10"]["small"]
    assert table["step"] == best and list(orders) == ["bm25", "dense", "fused", "cross-encoder", "oracle"]
    assert orders["cross-encoder"] == {"candidates": figures["ndcg@10"]["best"], "corpus": None}
    assert orders["bm25"]["candidates"] == orders["bm25"]["corpus"] == figures["ndcg@10"]["base"]
    assert all(row["candidates"] <= orders["oracle"]["candidates"] for row in orders.values())
    found = figures["recall@100"]["base"]
    assert orders["oracle"]["candidates"] == pytest.approx(found, abs=1e-5)  # each query has one judged passage
    for order in ("dense-candidates", "dense-corpus", "fused-corpus", "oracle-candidates"):
        values = json.loads((folder / "per_query" / "small" / f"{order}.json").read_text())["ndcg@10"]
        name, _, where = order.rpartition("-")
        assert np.mean(list(values.values())) == pytest.approx(orders[name][where], abs=1e-5)
    printed = capsys.readouterr().out
    assert "cross-encoder" in printed and f"{orders['oracle']['candidates']:.4f}" in printed
    rows = metrics(folder)
    logged = {column for row in rows for column, value in row.items() if value}
    assert {"train/loss", "dev/loss", "dev/ndcg@10", "dev/mrr", "val/small/ndcg@10", "lr-AdamW"} <= logged
    dev = [float(row["dev/loss"]) for row in rows if row["dev/loss"]]
    assert len(dev) == 3 and results["steps"]["best"] == 4 * (1 + int(np.argmin(dev[1:])))
    assert sum(bool(row["val/small/ndcg@10"]) for row in rows) == 1  # once, at the end
    card = (folder / "model" / "README.md").read_text()
    assert f"{figures['ndcg@10']['best']:.4f}" in card and "CrossEncoderModule" in card
    assert (folder / "environment.json").is_file() and results["encoder"]


@pytest.mark.slow
def test_a_cross_encoder_is_evaluated_without_a_trainer(teacher_run, small_scifact, tmp_path):
    lengths = {"query_max_length": 90, "passage_max_length": 128, "pair_max_length": 120}
    options = [*(f"encoder.{name}={length}" for name, length in lengths.items()), "evaluation.dense=null"]
    results = run_experiment(config_of(*teacher_run, *options, "trainer.max_epochs=1"), tmp_path / "run")
    encoder = CrossEncoder.from_pretrained(str(tmp_path / "run" / "model"), **lengths)
    history = History(tmp_path / "alone", Metrics())
    history.sets = open_sets(read_evaluation_specs([{"path": str(small_scifact)}]), Reading(cache_dir=tmp_path / "own"))
    evaluator = Evaluator(CrossEncoderRanker(depth=12), history, Ranking(cache_dir=tmp_path / "own"))
    evaluator.prepare(encoder)
    figures = evaluator.evaluate(encoder, 1)["small"]
    for metric, points in results["datasets"]["small"].items():
        assert (figures[metric], history.base["small"][metric]) == (points["best"], points["base"])
    evaluator.finish(encoder, 1)
    orders = json.loads((tmp_path / "alone" / "reranking.json").read_text())["ndcg@10"]
    assert orders == json.loads((tmp_path / "run" / "reranking.json").read_text())["ndcg@10"]


@pytest.mark.slow
def test_dense_and_fused_orders_are_those_of_the_embeddings(teacher_run, small_scifact, tiny_encoder, tmp_path):
    run_experiment(config_of(*teacher_run, "trainer.max_epochs=1", "evaluation.depth=120"), tmp_path / "run")
    data = load_evaluation_set(str(small_scifact))
    queries = embed(tiny_encoder.tokenize(list(data.queries.values()), "query"), tiny_encoder, 4096)
    passages = embed(tiny_encoder.tokenize(data.corpus.passages.to_pylist(), "passage"), tiny_encoder, 4096)
    lexical = bm25_search(data.corpus.passages.to_pylist(), list(data.queries.values()), 120)
    ids = data.corpus.ids.to_pylist()
    runs = {(name, where): {} for name in ("dense", "fused") for where in ("candidates", "corpus")}

    def scaled(values):
        return (values.astype("f8") - values.min()) / (np.ptp(values) or 1.0)

    for i, query in enumerate(data.queries):
        hits = lexical.rows[i][lexical.rows[i] >= 0]  # a passage without a word of the query is no candidate
        bm25 = np.zeros(120)
        bm25[hits] = scaled(lexical.scores[i][lexical.rows[i] >= 0])
        cosine = passages @ queries[i]
        for where, rows in {"candidates": hits, "corpus": np.arange(120)}.items():
            for name, scores in {"dense": cosine[rows], "fused": bm25[rows] + scaled(cosine[rows])}.items():
                runs[name, where][query] = {ids[row]: float(s) for row, s in zip(rows, scores, strict=True)}
    orders = json.loads((tmp_path / "run" / "reranking.json").read_text())["ndcg@10"]["small"]
    for (name, where), run in runs.items():
        expected = score_run(data.qrels, run)[0]["ndcg@10"]
        assert orders[name][where] == pytest.approx(expected, abs=2e-5), (name, where)


@pytest.mark.slow
def test_training_puts_the_labelled_first_and_keeps_to_its_seed(teacher_run, tmp_path):
    options = ["evaluation.dense=null", "evaluation.depth=2", "export=false", "encoder.dropout=0.1"]
    long = ["trainer.max_epochs=15", "trainer.check_val_every_n_epoch=15", "module.learning_rate=3e-3"]
    long += ["data.dev_fraction=0.1"]
    run_experiment(config_of(*teacher_run, *options, *long), tmp_path / "long")
    losses = [float(r["train/loss"]) for r in metrics(tmp_path / "long") if r["train/loss"]]
    assert losses[0] > 1 and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        run_experiment(
            config_of(*teacher_run, *options, f"seed={seed}", "module.negatives=2", "trainer.max_epochs=1"),
            tmp_path / name,
        )
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a) and any(not torch.equal(a[key], c[key]) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize("validate_every", [1.0, 0.5])
def test_killed_training_resumes_to_the_same_weights(teacher_run, tmp_path, validate_every):
    options = [
        *teacher_run,
        "evaluation.dense=null",
        "module.negatives=2",
        f"trainer.val_check_interval={validate_every}",
    ]
    options += ["trainer.max_epochs=3", "encoder.dropout=0.1"]
    whole = run_experiment(config_of(*options), tmp_path / "whole")
    with killed_at(7, QueryListModule):
        run_experiment(config_of(*options), tmp_path / "cut")
    resumed = run_experiment(config_of(*options, f"resume={tmp_path}/cut"), tmp_path / "cut")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert resumed["datasets"] == whole["datasets"] and resumed["steps"] == whole["steps"]


@pytest.mark.slow
def test_killed_evaluation_resumes_with_the_blocks_it_has(teacher_run, tmp_path, monkeypatch):
    options = [*teacher_run, "evaluation.dense=null"]
    whole = run_experiment(config_of(*options, f"cache_dir={tmp_path}/other"), tmp_path / "whole")
    monkeypatch.setattr(reranking, "_BLOCK", 3)
    score, done = reranking.encode, []

    def counted(*arguments, **options):
        if len(done) == 4:
            raise RuntimeError("killed")
        done.append(1)
        return score(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(reranking, "encode", counted)
        with pytest.raises(RuntimeError, match="killed"):
            run_experiment(config_of(*options), tmp_path / "cut")
    assert len(list(tmp_path.glob("cache/reranking/*/blocks/*.npy"))) == 4 and not (tmp_path / "cut/model").exists()
    done.clear()
    monkeypatch.setattr(reranking, "encode", lambda *a, **k: done.append(1) or score(*a, **k))
    resumed = run_experiment(config_of(*options, f"resume={tmp_path}/cut"), tmp_path / "cut")
    assert len(done) == 7 - 4  # blocks of 3 of 20 queries
    assert resumed["datasets"] == whole["datasets"] and resumed["steps"] == whole["steps"]
    assert (tmp_path / "cut" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_distillation_share_moves_the_loss(teacher_run, tmp_path, monkeypatch):
    options = ["evaluation.dense=null", "evaluation.depth=2", "export=false", "trainer.max_epochs=1"]
    lengths = []

    def counted(encoder, pairs, *rest, **options):
        if torch.is_grad_enabled():
            lengths.extend(pairs.tokens.lengths.tolist())
        return encode(encoder, pairs, *rest, **options)

    monkeypatch.setattr("retriever.cross_encoder.module.encode", counted)
    options += ["module.distillation_weight=0.5", "diagnostics.every_n_steps=2"]
    results = run_experiment(config_of(*teacher_run, *options), tmp_path / "run")
    assert results["passages_encoded"] == results["texts_encoded"] == len(lengths) > 0
    assert results["tokens_encoded"] == sum(lengths)
    diagnosed = {
        k: int(r["step"]) for r in metrics(tmp_path / "run") for k, v in r.items() if v and "diagnostics/" in k
    }
    assert diagnosed == {"diagnostics/tokens_per_second": 2}  # of the last of two; the rest is for embeddings
    rows = [r for r in metrics(tmp_path / "run") if r["train/loss"]]
    for row in rows:
        ranking, divergence = float(row["train/ranking"]), float(row["train/distillation"])
        assert ranking > 0 and divergence > 0
        assert float(row["train/loss"]) == pytest.approx(ranking + 0.5 * divergence, rel=1e-5)
    assert len(rows) == 4


@pytest.mark.slow
def test_reranking_at_every_validation_is_logged(teacher_run, tmp_path):
    options = ["evaluation.dense=null", "evaluation.every_validation=true", "export=false"]
    results = run_experiment(config_of(*teacher_run, *options), tmp_path / "run")
    rows = [r for r in metrics(tmp_path / "run") if r["val/small/ndcg@10"]]
    assert {4, 8} <= {int(p.stem[-6:]) for p in (tmp_path / "run" / "per_query" / "small").glob("step-*.json")}
    assert len(rows) >= 2 and results["steps"]["last"] == 8


@pytest.mark.slow
def test_own_passage_is_no_candidate(teacher_run, small_scifact, tmp_path):
    config = config_of(*teacher_run, "evaluation.dense=null")
    evaluation = instantiate(config.evaluation, folder=tmp_path)
    [opened] = open_sets(evaluation.specs, evaluation.reading)
    data, ranker, how = opened.data, evaluation.ranker, evaluation.how
    own = data.corpus.ids[5].as_py()
    queries = {own: data.corpus.passages[5].as_py(), **data.queries}
    changed = type(data)(data.name, data.corpus, queries, {own: {own: 0}, **data.qrels})
    rows = ranker.candidates(changed, how).rows
    assert rows.shape == (21, 12) and 5 not in rows[0]
    ranker._candidates.clear()
    relevant = type(data)(data.name, data.corpus, queries, {own: {own: 1}, **data.qrels})
    assert ranker.candidates(relevant, how).rows[0, 0] == 5
    ranker._candidates.clear()
    assert ranker.candidates(changed, replace(how, ignore_identical_ids=False)).rows[0, 0] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair_max_length": 129, "passage_max_length": 128}, "has 128 positions"),
        ({"pair_max_length": 60}, "it must be at least 62"),
        ({"query_max_length": 2}, "at least 3 tokens"),
        ({"pair_length": 60}, "Did you mean 'pair_max_length'?"),
    ],
)
def test_wrong_lengths_are_explained(tiny_model, options, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        tiny(tiny_model, **options)


def test_wrong_settings_are_explained(tiny_model, tiny_encoder, tmp_path):
    encoder = tiny(tiny_model)
    for options, message in [
        ({"negative_ranks": (3, 2)}, "negative_ranks is"),
        ({"negatives": 0}, "negatives is 0"),
        ({"distillation_weight": -1.0}, "distillation_weight is"),
    ]:
        with pytest.raises(InputError, match=message):
            CrossEncoderModule(encoder, **options)
    with pytest.raises(InputError, match="encoder=cross_minilm"):
        CrossEncoderModule(tiny_encoder)
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a head of 3 logits; a cross-encoder must have one logit"):
        CrossEncoder.from_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="no such model folder"):
        CrossEncoder.from_pretrained(str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_ranks_beyond_the_lists_are_refused(teacher_run, tmp_path):
    with pytest.raises(InputError, match="at the ranks 40 to 50"):
        run_experiment(config_of(*teacher_run, "module.negative_ranks=[40, 50]"), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_and_rerank_as_one(teacher_run, tmp_path):
    # all negatives there are, so that nothing is drawn at random
    options = ["evaluation.dense=null", "module.negatives=20", "encoder.dropout=0", "export=false"]
    figures, trained = {}, {}
    for devices in (1, 2):
        folder = tmp_path / f"devices{devices}"
        own = [*teacher_run, *options, f"cache_dir={folder}/cache"]
        if devices == 1:
            run_experiment(config_of(*own), folder)
        else:
            finish(folder, *start_ranks(folder, *own, f"hydra.run.dir={folder}"))
            assert not any("Traceback" in log.read_text() for log in tmp_path.glob("*.log"))
        figures[devices] = json.loads((folder / "results.json").read_text())["datasets"]["small"]["ndcg@10"]
        trained[devices] = weights(folder)
    # Adam divides by the root of the squared gradient: where that is nearly 0, rounding moves a weight by up to lr
    close = torch.cat([((w - trained[2][key]).abs() < 1e-4).float().flatten() for key, w in trained[1].items()])
    assert close.mean() > 0.99
    assert figures[2]["base"] == figures[1]["base"]
    assert figures[2]["best"] == pytest.approx(figures[1]["best"], abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["module=distillation"], "a cross-encoder needs module=reranker"),
        (["evaluation=scifact"], r"a cross-encoder .* needs evaluation=rerank"),
        (["encoder=minilm"], "choose one, for example encoder=cross_minilm"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(small_run, tmp_path, options, words):
    fixed = [o for o in small_run if not o.startswith(("module.", "evaluation.", "encoder."))]
    config = config_of("+exp=teacher/scifact", *fixed, *options, "evaluation.datasets=[{path: scifact}]")
    with pytest.raises((InputError, InstantiationException), match=words):
        run_experiment(config, tmp_path / "run")

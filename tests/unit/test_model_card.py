"""The model card: valid front matter, figures with intervals, where the data came from, and what that does not say."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from callbacks.evaluation.per_query import read_per_query
from callbacks.reporting.model_card import CardFacts, Figure, model_card
from callbacks.reporting.statistics import Difference, paired_difference
from experiments.training.callbacks import card_facts
from experiments.training.train import run_experiment
from helpers.runs import config_of
from retriever.encoder.text_encoder import TextEncoder


def card_of(encoder, **changes):
    figure = Figure(
        name="scifact",
        path="scifact",
        split="test",
        dev=False,
        base={"ndcg@10": 0.645, "recall@100": 0.92},
        model={"ndcg@10": 0.6612, "recall@100": 0.93},
        difference=Difference(0.0162, 0.0051, 0.0274, 300),
    )
    facts = {
        "name": "distillation",
        "seed": 3,
        "objective": "ListwiseDistillation",
        "settings": {"_target_": "retriever.objectives.ListwiseDistillation", "temperature": 0.05, "token_budget": 9},
        "training": {"lists of a step": 64, "LoRA": None},
        "criterion": "dev/loss",
        "data": {
            "train_lists": 535,
            "dev_lists": 200,
            "files": [
                {
                    "part": "train",
                    "file": "human.train.parquet",
                    "corpus": "scifact",
                    "lists": 535,
                    "weight": 1.0,
                    "types": {"human": 500, "claim": 35},
                    "teacher": {"one": {"name": "castorini/rankt5", "kind": "rankt5"}, "two": {"kind": "fusion"}},
                }
            ],
            "leak_guard": [
                {
                    "lists": "human.train.parquet",
                    "against": "scifact/test",
                    "of": 650,
                    "shares a relevant passage with": 100,
                    "is nearly equal to": 15,
                }
            ],
        },
        "encoder": encoder,
        "frozen_passages": False,
        "step": 24,
        "figures": [figure],
    }
    return model_card(CardFacts(**facts | changes)), figure


def test_front_matter_is_valid_and_names_what_the_hub_knows(tiny_encoder, monkeypatch):
    monkeypatch.setattr(tiny_encoder, "name", "sentence-transformers/all-MiniLM-L6-v2")
    data = ModelCard(card_of(tiny_encoder)[0]).data
    assert data.library_name == "sentence-transformers" and data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.datasets == ["BeIR/scifact"] and {"sentence-transformers", "retrieval"} <= set(data.tags)
    [result] = data.eval_results
    assert (data.model_name, result.dataset_type, result.dataset_split) == ("distillation", "BeIR/scifact", "test")
    assert (result.metric_type, result.metric_value) == ("ndcg_at_10", 0.6612)


def test_card_tells_data_teacher_objective_and_figures(tiny_encoder):
    card, _ = card_of(tiny_encoder)
    for row in (
        "| scifact (test) | 300 | 0.6450 | 0.6612 | +0.0162 | [+0.0051, +0.0274] | 0.9200 → 0.9300 |",
        "| train | 535 | 500 human, 35 claim | 1.0 | scifact | human.train.parquet | castorini/rankt5 and fusion |",
        "| `temperature` | 0.05 |",
        "| lists of a step | 64 |",
        "| pooling | mean |",
        "* 100 whose query shares a relevant passage with, 15 whose query is nearly equal to a query of scifact/test "
        "(of 650 lists of human.train.parquet)",
    ):
        assert row in card
    assert "with seed 3" in card and "token_budget" not in card and "_target_" not in card


def test_card_tells_how_another_encoder_reads_the_passages(tiny_encoder, tiny_model):
    other = TextEncoder.from_pretrained(str(tiny_model), pooling="cls")
    other.spec = replace(other.spec, normalize=not tiny_encoder.spec.normalize)
    card, _ = card_of(tiny_encoder, frozen_passages=True, passage_encoder=other)
    assert "| pooling | mean; of the passages cls |" in card and "; passages: no |" in card
    assert "of the passages" not in card_of(tiny_encoder, frozen_passages=True, passage_encoder=tiny_encoder)[0]


def test_card_is_honest(tiny_encoder):
    card, figure = card_of(tiny_encoder)
    assert "no difference can be told" not in card and "Few queries" not in card
    unsure = Figure(**vars(figure) | {"difference": Difference(0.01, -0.01, 0.03, 20), "dev": True})
    card, _ = card_of(tiny_encoder, figures=[unsure], criterion="val/scifact/ndcg@10")
    assert "On scifact the interval holds 0: no difference can be told." in card and "Few queries: scifact (20)" in card
    assert "flattered by the choice" in card and "Dev queries are there to choose settings by" in card
    assert "It was evaluated on no data set." in card_of(tiny_encoder, figures=[])[0]
    assert "chosen by `dev/loss`" in card_of(tiny_encoder)[0]
    last = card_of(tiny_encoder, criterion=None)[0]
    assert "The weights are those of the last step" in last and "chosen by" not in last


@pytest.mark.parametrize("frozen", [False, True])
def test_card_of_a_run_that_kept_its_base_model_says_so(tiny_encoder, tiny_model, frozen):
    _, figure = card_of(tiny_encoder)
    same = Figure(**vars(figure) | {"model": figure.base, "difference": Difference(0.0, 0.0, 0.0, 300)})
    card, _ = card_of(tiny_encoder, step=0, figures=[same], frozen_passages=frozen)
    said = "**not fine-tuned**: it was trained with **ListwiseDistillation**, but by `dev/loss` no step was better"
    assert f"{tiny_model.name}, {said}" in card
    assert ", fine-tuned" not in card and "every difference is 0" in card and "no difference can be told" not in card
    trained, _ = card_of(tiny_encoder, frozen_passages=frozen)
    assert f"{tiny_model.name}, fine-tuned for" in trained and "not fine-tuned" not in trained


def test_held_out_lists_are_no_published_figure(tiny_encoder):
    _, figure = card_of(tiny_encoder)
    held_out = Figure(**vars(figure) | {"name": "keywords", "split": None})
    card, _ = card_of(tiny_encoder, figures=[figure, held_out])
    assert [result.dataset_name for result in ModelCard(card).data.eval_results] == ["scifact"]
    assert "| keywords (held-out lists) | 300 |" in card


def test_folder_of_a_local_base_model_is_nobodys_business(tiny_encoder, tiny_model):
    card, _ = card_of(tiny_encoder, frozen_passages=True)
    assert ModelCard(card).data.base_model is None and str(tiny_model.parent) not in card
    assert f"passages must be encoded with the unchanged {tiny_model.name}" in card
    assert f'passages = SentenceTransformer("{tiny_model.name}", prompts=model.prompts)' in card


@pytest.mark.slow
def test_exported_card_has_the_runs_own_figures(small_run, tmp_path):
    folder = tmp_path / "run"
    results = run_experiment(config_of("module=distillation", *small_run), folder)
    card = ModelCard.load(folder / "model" / "README.md")
    figures = results["datasets"]["small"]["ndcg@10"]
    assert card.data.eval_results[0].metric_value == figures["best"]
    values = folder / "per_query" / "small"
    base, best = (read_per_query(values / f"step-{results['steps'][p]:06d}.json") for p in ("base", "best"))
    found = paired_difference(best, base)
    row = f"| small (test) | 20 | {figures['base']:.4f} | {figures['best']:.4f} | {found.mean:+.4f} "
    assert f"{row}| [{found.low:+.4f}, {found.high:+.4f}] |" in card.text
    train_lists = results["data"]["train_lists"]
    assert (
        f"| train | {train_lists} | {train_lists} human | 1.0 | small | human.parquet | made for tests |" in card.text
    )
    assert "| `teacher_temperature` | 0.3 |" in card.text
    assert TextEncoder.from_pretrained(str(folder / "model"), passage_max_length=64).spec.pooling == "mean"


def test_card_says_what_was_not_chosen_and_not_set(small_run, tmp_path):
    facts = card_facts(config_of(*small_run, "save_checkpoints=false", "encoder.dropout=null"))
    assert facts["criterion"] is None and facts["training"]["dropout"] == "the checkpoint's own"
    facts = card_facts(config_of(*small_run, "encoder.dropout=0.1"))
    assert facts["criterion"] == "dev/loss" and facts["training"]["dropout"] == 0.1


def test_frozen_passages_are_cut_and_normalised_as_in_the_run(tiny_encoder, tiny_model):
    cut = TextEncoder.from_pretrained(str(tiny_model), truncate_dim=16)
    said = "passages.truncate_dim = 16"
    assert said in card_of(tiny_encoder, frozen_passages=True, passage_encoder=cut)[0]
    whole, _ = card_of(tiny_encoder, frozen_passages=True)
    assert said not in whole and "normalize_embeddings=True).T" in whole
    assert "normalize_embeddings" not in card_of(tiny_encoder)[0]

"""Comparisons of runs: what is paired with what, which queries count, and every format they are written in."""

import base64
import csv
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow.compute as pc
import pytest
from omegaconf import OmegaConf

from callbacks.reporting.results import read_results
from callbacks.reporting.statistics import holm, paired_test
from datamodules.batch_sampler import WeightedLists
from datamodules.corpus import SHIPPED, load_evaluation_set, load_qrels, load_queries
from datamodules.leakage.overlap import find_overlap
from datamodules.query_lists import open_query_lists, read_query_lists
from experiments.compare import main
from experiments.comparison import page as pages
from experiments.comparison import runs as run_folders
from experiments.comparison.changes import most_changed
from experiments.comparison.formats import csv_text, latex, markdown, print_tables, records
from experiments.comparison.plots import _short, draw
from experiments.comparison.runs import find_runs, read_runs
from experiments.comparison.tables import compare
from experiments.training.train import run_experiment
from helpers.run_folders import values, write_run
from helpers.runs import config_of
from helpers.wandb_files import offline_records
from retriever.errors import InputError

pytestmark = pytest.mark.slow


def page(comparison):
    return pages.page(comparison, draw(comparison))


HOSTILE = '<script>alert("1")</script> & | \\ $x_1^2$ `a` [b](http://c) </table>'


COLUMNS = [
    *("table", "queries", "run", "seeds", "ndcg@10", "difference", "low", "high", "p", "p_holm", "comparisons"),
    *("wins", "ties", "losses", "recall@100", "steps", "minutes", "peak_memory_gib", "passages_encoded"),
    *("tokens_encoded", "pruned"),
]


def arm_of(comparison, name, dataset="d"):
    return next(arm for arm in comparison[dataset] if arm.name == name)


def test_named_base_is_paired_by_seed_where_both_have_it(tmp_path):
    of_a, of_b = ({seed: values(10 * k + seed) for seed in seeds} for k, seeds in ((1, (1, 2, 3)), (2, (2, 3, 4))))
    for name, runs in (("a", of_a), ("b", of_b)):
        for seed, v in runs.items():
            write_run(tmp_path / f"{name}{seed}", name, seed, {"d": v})
    comparison = compare([tmp_path], base="b")
    order = np.argsort([f"q{i}" for i in range(40)])
    expected = paired_test([np.array([of_a[s] - of_b[s] for s in (2, 3)])[:, order]])
    assert arm_of(comparison, "a").difference == expected
    assert arm_of(comparison, "b").difference is None and arm_of(comparison, "b").p_holm is None
    assert arm_of(comparison, "base").difference.mean == pytest.approx(
        values(0).mean() - np.mean([v.mean() for v in of_b.values()])
    )
    p = [arm_of(comparison, name).difference.p for name in ("base", "a")]
    assert [arm_of(comparison, name).p_holm for name in ("base", "a")] == holm(p)
    assert "difference to b " in markdown(comparison)
    assert "a: difference over seed 2, 3 alone, which b has, too; its nDCG@10 over all of its seeds" in markdown(
        comparison
    )
    assert arm_of(comparison, "a").paired == [2, 3] and arm_of(comparison, "base").paired is None
    both = compare([tmp_path / f"{name}{seed}" for name in "ab" for seed in (2, 3)], base="b")
    assert arm_of(both, "a").paired is None and "alone" not in markdown(both)
    # no seed in common: the means over all seeds
    alone = compare([tmp_path / "a1", *(tmp_path / f"b{seed}" for seed in (2, 3, 4))], base="b")
    assert arm_of(alone, "a").difference.mean == pytest.approx(
        of_a[1].mean() - np.mean([v.mean() for v in of_b.values()])
    )
    with pytest.raises(InputError, match="--base is 'aa'; valid values are 'base', 'a', 'b'"):
        compare([tmp_path], base="aa")


def test_arms_of_other_base_models_are_compared_with_a_named_arm(tmp_path):
    write_run(tmp_path / "a", "a", 1, {"d": values(1)})
    write_run(tmp_path / "b", "b", 1, {"d": values(2)}, base={"d": values(3)})
    with pytest.raises(InputError, match=r"one base model.*--base NAME"):
        compare([tmp_path])
    comparison = compare([tmp_path], base="a")
    assert [arm.name for arm in comparison["d"]] == ["a", "b"]
    assert arm_of(comparison, "b").difference.mean == pytest.approx((values(2) - values(1)).mean())
    write_run(tmp_path / "c", "c", 1, {"d": values(2, 30)})
    with pytest.raises(InputError, match=r"30 queries of d.*40"):
        compare([tmp_path], base="a")


def test_each_encoder_is_compared_with_itself_before_training(tmp_path):
    for seed in (1, 2):
        for number, name in enumerate(("mini", "large")):
            config = {"encoder": {"model": name}}
            base = {"d": values(50 + number)}
            write_run(tmp_path / f"{name}{seed}", name, seed, {"d": values(seed + number)}, base=base, config=config)
    comparison = compare([tmp_path])
    assert [arm.name for arm in comparison["d"]] == ["base of large", "base of mini", "large", "mini"]
    assert [arm.difference is None for arm in comparison["d"]] == [True, True, False, False]
    for number, name in enumerate(("mini", "large")):
        assert arm_of(comparison, f"base of {name}").ndcg == pytest.approx(values(50 + number).mean())
        mean = np.mean([values(seed + number) - values(50 + number) for seed in (1, 2)])
        assert arm_of(comparison, name).difference.mean == pytest.approx(mean)
    # models are other models also where their means are the same
    config = {"encoder": {"model": "turned"}}
    turned = {"d": values(51)[::-1]}
    write_run(tmp_path / "t", "turned", 1, {"d": values(1)}, base=turned, config=config)
    assert [arm.name for arm in compare([tmp_path])["d"]][:3] == ["base of large", "base of mini", "base of turned"]
    shutil.rmtree(tmp_path / "t")
    named = compare([tmp_path], base="mini")
    assert [arm.difference is None for arm in named["d"]] == [False, False, False, True]
    assert "base of large" in page(named)


def test_sets_of_one_name_over_several_corpora_are_kept_apart(tmp_path):
    for number, corpus in enumerate(("c-100", "c-300")):
        sets = {"evaluation": {"datasets": [{"path": f"cuts/{corpus}", "name": "test"}]}}
        base = {"test": values(90 + number, 20 + number)}
        write_run(tmp_path / corpus, corpus, 1, {"test": values(number, 20 + number)}, base=base, config=sets)
    comparison = compare([tmp_path])
    assert list(comparison.tables) == ["test (c-100)", "test (c-300)"]
    for number, corpus in enumerate(("c-100", "c-300")):
        names = [arm.name for arm in comparison[f"test ({corpus})"]]
        assert names == ["base", corpus] and comparison.tables[f"test ({corpus})"].queries == 20 + number
        assert arm_of(comparison, corpus, f"test ({corpus})").ndcg == pytest.approx(values(number, 20 + number).mean())
    assert comparison.average is None and "test (c-300)" in page(comparison)


def test_average_leaves_out_dev_queries_and_sets_that_not_all_runs_have(tmp_path):
    sets = [{"path": "d"}, {"path": "some/e"}, {"path": "d", "split": "train", "name": "d-dev", "queries": "dev"}]
    config = {"evaluation": {"datasets": sets}}
    of_run = {"d": values(1), "e": values(2, 15), "d-dev": values(3)}
    write_run(tmp_path / "a", "a", 1, of_run, config=config)
    write_run(tmp_path / "b", "b", 1, {**of_run, "f": values(4)}, config=config)
    comparison = compare([tmp_path])
    assert comparison.average.title == "average of d, e" and comparison.average.queries == 55
    a = next(arm for arm in comparison.average.arms if arm.name == "a")
    differences = [of_run[d] - values(0, len(of_run[d])) for d in ("d", "e")]
    assert a.difference.mean == pytest.approx(np.mean([d.mean() for d in differences]))
    assert a.ndcg == pytest.approx(np.mean([of_run[d].mean() for d in ("d", "e")]))
    assert [arm.name for arm in comparison["f"]] == ["base", "b"]
    assert list(comparison.tables) == ["d", "e", "d-dev", "f"]
    assert compare([tmp_path / "a"]).tables.keys() == of_run.keys()


def test_average_leaves_out_lists_that_were_held_out(tmp_path):
    sets = [{"path": "d"}, {"path": "e"}, {"path": "d", "name": "keywords", "lists": "keywords.test.parquet"}]
    of_run = {"d": values(1), "e": values(2, 15), "keywords": values(3)}
    write_run(tmp_path / "a", "a", 1, of_run, config={"evaluation": {"datasets": sets}})
    comparison = compare([tmp_path])
    assert comparison.average.title == "average of d, e" and list(comparison.tables) == ["d", "e", "keywords"]


def write_run_at_home(folder, name, seed, corpora, of_run, base, **config):
    """A run that was trained on some corpora, and evaluated on what ``of_run`` names."""
    config |= {
        "name": name,
        "data": {"train": [{"path": f"lists/{corpus}.parquet", "corpus": corpus} for corpus in corpora]},
        "evaluation": {"datasets": [{"path": dataset} for dataset in of_run]},
    }
    write_run(folder, name, seed, of_run, base={d: base[d] for d in of_run}, config=config)


def test_at_home_runs_on_several_corpora_are_one_arm(tmp_path, capsys):
    base = {"c": values(90, 15), "d": values(91)}
    of_arms = {}
    for number, (arm, corpus) in enumerate((arm, corpus) for arm in ("kl", "infonce") for corpus in base):
        found = of_arms.setdefault(arm, {}).setdefault(corpus, [])
        for seed in (2, 1):
            found.insert(0, values(10 * number + seed, len(base[corpus])))
            of_run = {"c": values(7, 15), "d": values(8)} | {corpus: found[0]}
            more = {"trainer": {"max_steps": 50 + len(base[corpus])}, "module": {"x": 1}}
            write_run_at_home(tmp_path / f"{arm}-{corpus}-{seed}", arm, seed, [corpus], of_run, base, **more)
    comparison = compare([tmp_path], at_home=True)
    assert comparison.average.title == "average of c, d" and comparison.average.queries == 55
    names = ["base", "infonce", "kl"]
    assert [arm.name for arm in comparison.average.arms] == names and list(comparison.groups) == names[1:]
    order = {corpus: np.argsort([f"q{i}" for i in range(len(v))]) for corpus, v in base.items()}
    for arm in comparison.average.arms[1:]:
        expected = [np.array([v - base[c] for v in of_arms[arm.name][c]])[:, order[c]] for c in ("c", "d")]
        assert arm.difference == paired_test(expected) and arm.seeds == [1, 2] and arm.minutes == 1.5
        assert arm.ndcg == pytest.approx(np.mean([np.mean(of_arms[arm.name][c]) for c in base]))
    for corpus in base:
        assert arm_of(comparison, "kl", corpus).ndcg == pytest.approx(np.mean(of_arms["kl"][corpus]))
    assert comparison.differing == ["trainer.max_steps"] and not comparison.forgetting
    assert "runs of one arm differ in trainer.max_steps" in markdown(comparison)
    assert "each run on the corpus that it was trained on" in page(comparison)
    contrast = compare([tmp_path], base="infonce", at_home=True).average.arms[-1].difference
    paired = [np.array(of_arms["kl"][c]) - np.array(of_arms["infonce"][c]) for c in ("c", "d")]
    assert contrast == paired_test([d[:, order[c]] for c, d in zip(("c", "d"), paired, strict=True)])
    for options, hint in ((["--at-home"], False), ([], True)):
        main([str(tmp_path), *options])
        said = " ".join(capsys.readouterr().out.split())
        assert "average of c, d" in said and ("trained on different corpora. --at-home looks" in said) == hint
    assert compare([tmp_path]).average.arms[1].name.startswith("infonce (data.train="), "apart, they are four arms"


def test_at_home_there_is_no_average_over_other_seeds(tmp_path, caplog):
    base = {"c": values(90, 15), "d": values(91)}
    for corpus, seed in (("c", 1), ("c", 2), ("d", 1)):
        write_run_at_home(tmp_path / f"{corpus}{seed}", "a", seed, [corpus], {corpus: base[corpus][::-1]}, base)
    comparison = compare([tmp_path], at_home=True)
    assert comparison.average is None and list(comparison.tables) == ["c", "d"]
    assert "No average over corpora: a has seeds 1, 2 on c and 1 on d. Name runs of the same seeds." in caplog.text
    assert compare([tmp_path / "c1", tmp_path / "d1"], at_home=True).average.queries == 55


def test_at_home_encoder_and_objective_make_arms_and_what_belongs_to_the_corpus_does_not(tmp_path, caplog):
    base = {"c": values(90, 15), "d": values(91)}

    def run(number, corpus, seed=1, temperature=0.05, model="mini", steps=50, **beside):
        of_run = {corpus: values(number, len(base[corpus]))}
        more = {"module": {"temperature": temperature}, "encoder": {"model": model}, "trainer": {"max_steps": steps}}
        write_run_at_home(tmp_path / str(number), "a", seed, [corpus], of_run, base, **(more | beside))

    def averaged():
        average = compare([tmp_path], at_home=True).average
        return average and [arm.name for arm in average.arms]

    run(1, "c"), run(2, "c", temperature=0.01), run(3, "d", steps=60)
    assert averaged() == ["base", "a (module.temperature=0.05)"], "the other one has no run on d"
    run(3, "d", model="large")
    assert averaged() is None and "No average over corpora: no arm has runs on c, d" in caplog.text
    shutil.rmtree(tmp_path / "2")
    run(3, "d", steps=60)
    run(4, "c", steps=70)
    assert averaged() is None, "within a corpus it does make another arm"
    shutil.rmtree(tmp_path / "4")
    assert averaged() == ["base", "a"]


def test_at_home_a_corpus_weighs_the_same_however_many_sets_it_has(tmp_path):
    base = {"c": values(90, 15), "d": values(91), "d-more": values(92)}
    means = {}
    for number, (corpus, sets) in enumerate({"c": ["c"], "d": ["d", "d-more"]}.items()):
        of_run = {name: values(number + k, len(base[name])) for k, name in enumerate(sets)}
        write_run_at_home(tmp_path / corpus, "a", 1, [corpus], of_run, base)
        config = OmegaConf.load(tmp_path / corpus / "config.yaml")
        config.evaluation.datasets = [{"path": corpus, "name": name} for name in sets]
        OmegaConf.save(config, tmp_path / corpus / "config.yaml")
        means[corpus] = np.mean([(of_run[name] - base[name]).mean() for name in sets])
    [_, arm] = compare([tmp_path], at_home=True).average.arms
    assert arm.difference.mean == pytest.approx(np.mean([means["c"], means["d"]]))


def test_at_home_lists_that_were_held_out_are_averaged_where_there_is_nothing_else(tmp_path):
    base = {"c": values(90, 15), "d": values(91)}
    for corpus, values_of in base.items():
        write_run_at_home(tmp_path / corpus, "a", 1, [corpus], {corpus: values_of[::-1]}, base)
        config = OmegaConf.load(tmp_path / corpus / "config.yaml")
        config.evaluation.datasets[0].lists = "sentence.test.parquet"
        config.evaluation.datasets[0].name = corpus
        OmegaConf.save(config, tmp_path / corpus / "config.yaml")
    assert compare([tmp_path], at_home=True).average.queries == 55 and compare([tmp_path]).average is None


@pytest.mark.parametrize(
    ("corpora", "evaluated", "words"),
    [
        ([], ["d"], "second was trained on nothing, and evaluated on d: it needs a data set of a corpus that it was"),
        (["d"], ["c"], "second was trained on d, and evaluated on c: it needs a data set of a corpus that it was"),
        (["c", "d"], ["c", "d"], "second were both trained on c, but not on the same corpora. Name runs that were"),
    ],
)
def test_at_home_a_run_that_has_none_is_refused(tmp_path, corpora, evaluated, words, capsys):
    base = {"c": values(90, 15), "d": values(91)}
    write_run_at_home(tmp_path / "first", "a", 1, ["c"], {"c": base["c"]}, base)
    write_run_at_home(tmp_path / "second", "a", 1, corpora, {name: base[name] for name in evaluated}, base)
    with pytest.raises(InputError, match=words):
        compare([tmp_path], at_home=True)
    main([str(tmp_path)])
    assert "--at-home" not in capsys.readouterr().out, "it would not work"


def test_files_have_no_home(tmp_path):
    write_run(tmp_path / "first", "a", 1, {"d": values(1)})
    (tmp_path / "x.trec").write_text("q1 Q0 p1 1 0.5 x\n")
    with pytest.raises(InputError, match=r"--at-home: it is for run folders, and .*x.trec is a file"):
        compare([tmp_path / "first", tmp_path / "x.trec"], at_home=True)


def test_arms_of_a_grid_are_told_apart_by_few_words(tmp_path):
    for number, temperature in enumerate((0.02, 0.05)):
        config = {"module": {"temperature": temperature}, "temperatures": {"student": temperature}, "group": number}
        write_run(tmp_path / str(number), "a", 1, {"d": values(number)}, config=config)
    names = [arm.name for arm in compare([tmp_path])["d"]]
    assert names == ["base", "a (module.temperature=0.02)", "a (module.temperature=0.05)"]
    long = [f"distillation (module.temperature=0.02, trainer.max_epochs={n})" for n in (1, 2)]
    short = [_short(name) for name in long]
    assert all(len(label) == 40 and label.startswith("distillation") for label in short) and short[0] != short[1]


def test_pruned_runs_are_marked(tmp_path):
    write_run(tmp_path / "1", "a", 1, {"d": values(1)}, pruned=True)
    write_run(tmp_path / "2", "a", 2, {"d": values(2)}, pruned=False)
    comparison = compare([tmp_path])
    assert "| a | 1†, 2 |" in markdown(comparison) and "†: stopped early by the sweep's pruner" in markdown(comparison)
    assert r"1$\dagger$, 2" in latex(comparison) and "1†, 2" in page(comparison)
    assert [row["pruned"] for row in records(comparison)] == ["", "1"]
    assert "†" not in markdown(compare([tmp_path / "2"]))


def test_damaged_folders_are_listed_and_other_commands_folders_are_not(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / str(seed), "a", seed, {"d": values(seed)})
    (tmp_path / "2" / "config.yaml").unlink()
    for command in ("bench", "prepare", "run"):
        hydra = tmp_path / command / ".hydra"
        hydra.mkdir(parents=True)
        OmegaConf.save({"seed": 1}, hydra / "config.yaml")
        OmegaConf.save({"hydra": {"job": {"name": command}}}, hydra / "hydra.yaml")
    (tmp_path / "starting" / ".hydra").mkdir(parents=True)
    for name in ("config.yaml", "hydra.yaml"):  # Hydra writes them without renaming
        (tmp_path / "starting" / ".hydra" / name).touch()
    comparison = compare([tmp_path])
    assert [arm.seeds for arm in comparison["d"]] == [[], [1]]
    assert comparison.unfinished == [tmp_path / "2", tmp_path / "run", tmp_path / "starting"]
    assert "results.json without config.yaml: the folder is damaged" in markdown(comparison)


def test_table_without_overlap_takes_the_union_over_the_runs(tmp_path):
    shared = {"q0": "shares a relevant passage with the train query t", "q1": "is nearly equal to the train query u"}
    a, b = values(1), values(2)
    write_run(tmp_path / "a", "a", 1, {"d": a}, overlap={"d": {"q0": shared["q0"]}})
    write_run(tmp_path / "b", "b", 1, {"d": b}, overlap={"d": {"q1": shared["q1"]}})
    comparison = compare([tmp_path])
    clean = comparison.clean["d"]
    assert (clean.queries, clean.of) == (38, 40)
    for arm, v in (("a", a), ("b", b)):
        got = next(x for x in clean.arms if x.name == arm)
        assert got.difference.mean == pytest.approx((v - values(0))[2:].mean()) and got.difference.queries == 38
        assert got.ndcg == pytest.approx(v[2:].mean()) and arm_of(comparison, arm).ndcg == pytest.approx(v.mean())
    text = markdown(comparison)
    assert (
        "**d, without overlap**: 38 of 40 queries, those that share neither a relevant passage nor near-equal" in text
    )
    # an older run does not say: then there is no such table
    write_run(tmp_path / "c", "c", 1, {"d": b})
    assert compare([tmp_path]).clean == {}
    # and where nothing is left, that is said
    everything = {f"q{i}": shared["q0"] for i in range(40)}
    write_run(tmp_path / "c", "c", 1, {"d": b}, overlap={"d": everything})
    comparison = compare([tmp_path])
    assert comparison.clean["d"].arms == [] and "none of the 40 queries is left" in markdown(comparison)
    assert "none of the 40 queries is left" in page(comparison) and "none of the 40" in latex(comparison)


def test_too_few_queries_are_named_and_no_difference_on_them_is_shown(tmp_path, capsys):
    for left, number in ((3, "3 queries"), (1, "1 query")):
        close = {f"q{i}": "shares a relevant passage with the train query t" for i in range(left, 40)}
        write_run(tmp_path / "a", "a", 1, {"d": values(1)}, overlap={"d": close})
        comparison = compare([tmp_path])
        print_tables(comparison)
        said = " ".join(capsys.readouterr().out.split())
        assert f"training here came close to all but {number}, too few for any difference to be significant" in said
        assert said.count("no overlap") == 1, "there is no such column"
    assert "1 of 40 queries" in markdown(comparison) and "(p is 1 at best)" in markdown(comparison)
    assert markdown(comparison).count("too few for any difference to be significant") == 1
    write_run(tmp_path / "a", "a", 1, {"d": values(1, 5)})
    assert "d: 5 queries" in markdown(compare([tmp_path])).replace("*", "")
    assert "these queries are too few for any difference to be significant (p is 0.062 at best)" in markdown(
        compare([tmp_path])
    )


def test_runs_are_found_by_pattern_and_what_is_unfinished_is_listed(tmp_path, capsys, monkeypatch):
    sweep = tmp_path / "sweep"
    for seed in (1, 2):
        write_run(sweep / f"{seed}_a_seed{seed}", "a", seed, {"d": values(seed)})
    (sweep / "2_a_seed3").mkdir()
    (sweep / "2_a_seed3" / "config.yaml").write_text("seed: 3\n")
    (sweep / "3_a_seed4" / ".hydra").mkdir(parents=True)  # refused before its configuration was written
    (sweep / "3_a_seed4" / ".hydra" / "config.yaml").write_text("seed: 4\n")
    (sweep / "3_a_seed4" / "error.txt").write_text("out of <memory>\n\nTraceback\n")
    for run in ("1_a_seed1", "2_a_seed3"):  # W&B and Hydra keep configurations inside of a run
        for inside in (".hydra", "wandb/offline-run-1/files"):
            (sweep / run / inside).mkdir(parents=True)
            (sweep / run / inside / "config.yaml").write_text("x: 1\n")
    cut = [sweep / "2_a_seed3", sweep / "3_a_seed4"]
    parsed = []
    monkeypatch.setattr(run_folders, "read_results", lambda folder: parsed.append(folder) or read_results(folder))
    assert compare([sweep]).unfinished == cut
    assert parsed == [sweep / "1_a_seed1", sweep / "2_a_seed2"], "each is read once"
    finished, unfinished = find_runs([f"{sweep}/*_a_seed1", sweep])
    assert list(finished) == [sweep / "1_a_seed1", sweep / "2_a_seed2"] and unfinished == cut
    main([str(sweep)])
    out = capsys.readouterr().out
    assert f"{cut[0]}: no results.json: it failed, was cut off, or is under way" in out
    assert f"{cut[1]}: out of <memory>" in out
    assert f"* {cut[1]}: out of \\<memory\\>" in markdown(compare([sweep])) and "out of &lt;mem" in page(
        compare([sweep])
    )
    with pytest.raises(InputError, match=r"none of 1 run\(s\) is finished"):
        find_runs([cut[0]])
    with pytest.raises(InputError, match="no such folder"):
        find_runs([f"{sweep}/no*"])


def test_learning_curve_goes_over_all_parts_of_a_run(tmp_path):
    write_run(tmp_path / "a", "a", 1, {"d": values(1)})
    head = "step,train/loss,val/d/ndcg@10\n"
    (tmp_path / "a" / "metrics-part1.csv").write_text(head + "0,,0.1\n2,3.0,\n4,,0.2\n6,,0.3\n")
    (tmp_path / "a" / "metrics-part2.csv").write_text(head + "6,,0.4\n")
    (tmp_path / "a" / "metrics-part10.csv").write_text(head + "6,,0.5\n")
    (tmp_path / "a" / "metrics.csv").write_text(head + "8,,0.6\n")
    [run] = read_runs(find_runs([tmp_path / "a"])[0])
    assert run.curve("d") == {0: 0.1, 4: 0.2, 6: 0.5, 8: 0.6}
    (tmp_path / "a" / "metrics.csv").unlink()
    assert run.curve("d")[6] == 0.5 and 8 not in run.curve("d")


def test_costs_are_means_over_seeds_and_blank_where_a_run_does_not_say(tmp_path):
    write_run(tmp_path / "a1", "a", 1, {"d": values(1)}, passages_encoded=1000, tokens_encoded=5)
    write_run(tmp_path / "a2", "a", 2, {"d": values(2)}, passages_encoded=3000, tokens_encoded=6)
    write_run(tmp_path / "b", "b", 1, {"d": values(3)})
    comparison = compare([tmp_path])
    a, b = arm_of(comparison, "a"), arm_of(comparison, "b")
    assert (a.minutes, a.memory, a.passages, a.tokens) == (1.5, 1.0, 2000, 5.5)
    assert (b.minutes, b.memory, b.passages, b.tokens) == (1.0, 1.0, None, None)
    assert "| 1.5 | 1.0 | 2,000 |" in markdown(comparison) and "| 1.0 | 1.0 |  |" in markdown(comparison)
    assert "passages encoded" not in markdown(compare([tmp_path / "b"]))


@pytest.fixture
def hostile(tmp_path):
    """Three arms, one with a hostile name, whose queries and titles are hostile, too."""
    texts = {"d": {f"q{i}": {"query": f"{HOSTILE} {i}", "relevant": [HOSTILE]} for i in range(40)}}
    sets = [{"path": "d"}, {"path": "d", "name": "d-dev", "queries": "dev"}]
    config = {"evaluation": {"datasets": sets}}
    for number, name in enumerate(("infonce_conventional_warm", "combined", HOSTILE)):
        for seed in (1, 2, 3):
            v = {"d": values(9 * number + seed), "d-dev": values(9 * number + seed + 50, 20)}
            overlap = {"d": {"q3": HOSTILE}, "d-dev": {}}
            write_run(tmp_path / f"{number}{seed}", name, seed, v, config=config, texts=texts, overlap=overlap)
    return tmp_path


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "action", "data")]
        assert not any(key.startswith("on") for key, _ in attributes)

    def handle_data(self, data):
        self.text += data


def test_page_holds_everything_loads_nothing_and_escapes_all_text(hostile):
    comparison = compare([hostile])
    text = page(comparison)
    parsed = Page(text)
    assert parsed.tags.count("script") == 1 and parsed.tags.count("table") == len(re.findall("<table>", text)) == 4
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in parsed.links)
    assert len([link for link in parsed.links if link.startswith("data:")]) == 6  # three plots, light and dark
    for link in parsed.links:
        if link.startswith("data:"):
            assert base64.b64decode(link.split(",", 1)[1]).startswith(b"\x89PNG")
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
    assert "http:" not in re.sub(re.escape("http://c"), "", text) and "https:" not in text
    assert f"{HOSTILE} 3" in parsed.text and parsed.text.count(HOSTILE) > 40
    for changes in most_changed(comparison):
        difference = [c.value - c.base for c in changes.hurt], [c.value - c.base for c in changes.helped]
        assert len(difference[0]) <= 10 and difference[0] == sorted(difference[0]) and max(difference[0]) < 0
        assert len(difference[1]) <= 10 and difference[1] == sorted(difference[1])[::-1] and min(difference[1]) > 0


def test_changed_queries_are_those_of_the_files(hostile):
    found = most_changed(compare([hostile]))
    assert [(c.dataset, c.arm) for c in found][:3] == [
        ("d", n) for n in ("infonce_conventional_warm", "combined", HOSTILE)
    ]
    mean = np.mean([values(seed) for seed in (1, 2, 3)], axis=0)
    worst = int(np.argmin(mean - values(0)))
    first = found[0].hurt[0]
    assert first.query_id == f"q{worst}" and first.query == f"{HOSTILE} {worst}" and first.relevant == [HOSTILE]
    assert (first.base, first.value) == pytest.approx((values(0)[worst], mean[worst]))


def test_every_format_is_written_whole(hostile, capsys):
    out = hostile / "report"
    main([str(hostile), "--output", str(out), "--markdown", str(hostile / "also.md")])
    names = {"html", "md", "tex", "csv"}
    plots = {f"comparison-{plot}.png" for plot in ("intervals", "curves", "queries")}
    assert {p.name for p in out.iterdir()} == {f"comparison.{n}" for n in names} | plots | {
        "comparison-queries.md",
        "comparison-queries.csv",
    }
    assert all((out / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert (out / "comparison.md").read_text().startswith((hostile / "also.md").read_text())
    assert str(out / "comparison.html") in capsys.readouterr().out
    comparison = compare([hostile])
    with open(out / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS and len(rows) == len(records(comparison)) == 16
    row = next(r for r in rows if r["run"] == HOSTILE and r["table"] == "d")
    assert float(row["difference"]) == arm_of(comparison, HOSTILE).difference.mean and row["seeds"] == "1 2 3"
    assert row["comparisons"] == "3" and float(row["p_holm"]) == arm_of(comparison, HOSTILE).p_holm
    with open(out / "comparison-queries.csv", newline="") as file:
        queries = list(csv.DictReader(file))
    assert len(queries) == 60 and queries[0]["query"].startswith(HOSTILE)
    assert [q["query_id"] for q in queries if q["overlap"]] == ["q3"]
    assert float(queries[0]["combined"]) == pytest.approx(np.mean([values(9 + seed)[0] for seed in (1, 2, 3)]))
    tex = (out / "comparison.tex").read_text()
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 4 and r"infonce\_conventional\_warm" in tex
    for table in re.findall(r"\\toprule(.*?)\\bottomrule", tex, re.S):
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in table.splitlines() if line.endswith(r"\\")}) == 1
    body = (out / "comparison-queries.md").read_text()
    assert "\\<script\\>" in body and "<script>" not in body and "](http" not in body.replace("\\](http", "")


def test_table_fits_into_132_columns(hostile, capsys):
    print_tables(compare([hostile / "01", hostile / "02", hostile / "03", *(hostile / f"1{s}" for s in (1, 2, 3))]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 132
    assert len([line for line in lines if line.startswith("│")]) == 6  # no cell is broken
    for words in ("difference to base [95%]", "no overlap", "p", "W/T/L", "minutes"):
        assert any(words in line for line in lines)
    assert any(re.search(r"\[[-+]0\.\d{4}, [-+]0\.\d{4}\]", line) for line in lines)


def test_a_long_name_of_the_base_stands_in_the_caption(tmp_path, capsys):
    name = "infonce_conventional (temperatures.infonce=0.01)"
    for arm, level in ((name, 1), ("other", 2)):
        write_run(tmp_path / arm[:5], arm, 1, {"d": values(level)})
    print_tables(compare([tmp_path], base=name))
    output = capsys.readouterr().out
    assert f"d: differences to {name}" in output and "difference [95%]" in output and "difference to" not in output
    assert max(map(len, output.splitlines())) <= 132


def test_metrics_that_have_no_room_on_the_terminal_are_named(tmp_path, capsys):
    further = [f"P(rel=2)@{number}" for number in range(1, 9)]
    points = {name: {"base": 0.1, "best": 0.2} for name in ("ndcg@10", *further)}
    write_run(tmp_path / "a", "a", 1, {"d": values(1)}, datasets={"d": points})
    comparison = compare([tmp_path])
    print_tables(comparison)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    heading = next(line for line in lines if "W/T/L" in line and line.startswith("┃"))
    shown = [name for name in further if name in heading]
    named = re.search(r"no room here for (.*): see the runs' results.json", " ".join(printed.split()))
    assert max(map(len, lines)) <= 132 and 0 < len(shown) < len(further)
    assert named.group(1).split(", ") == further[len(shown) :]
    assert all(name in markdown(comparison) for name in further) and "no room" not in markdown(comparison)


def test_wandb_gets_the_table_and_all_files_offline(hostile, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # so that it is as before afterwards
    out = tmp_path / "report"
    main([str(hostile), "--output", str(out), "--wandb", "comparisons"])
    [folder] = (out / "wandb").glob("offline-run-*")
    kept = offline_records(folder)
    project, history, artifacts = set(), {}, {}
    for record in kept:
        project |= {record.run.project}
        history |= {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
        if record.HasField("artifact"):
            artifacts[record.artifact.name] = {entry.path for entry in record.artifact.manifest.contents}
    assert "comparisons" in project
    assert artifacts["comparison"] == {p.name for p in out.glob("comparison*")} and len(artifacts["comparison"]) == 9
    [table] = (out / "wandb").glob("offline-run-*/files/media/table/*.table.json")
    table = json.loads(table.read_text())
    assert table["columns"] == list(COLUMNS) and len(table["data"]) == 16
    assert table["data"][1][2] == "infonce_conventional_warm" and any("comparison" in key for key in history)
    with pytest.raises(SystemExit):
        main([str(hostile), "--wandb", "comparisons"])


def words_of(text):
    return set(re.findall(r"\w+", text.lower()))


def test_overlap_counts_synthetic_lists_and_equals_brute_force(scifact, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.leakage.overlap._BLOCK", 700)
    corpus = scifact[0]
    test = load_evaluation_set("scifact", corpus=corpus)
    sources, used = [], []
    for kind in ("claim", "human"):
        lists, _ = open_query_lists(SHIPPED / "scifact" / "lists" / f"{kind}.train.parquet", corpus, tmp_path)
        weights = (np.arange(len(lists)) % 3 > 0).astype(float)  # every third is never drawn
        sources.append(WeightedLists(corpus, lists, weights))
        used += [x for x, w in zip(read_query_lists(lists.source), weights, strict=True) if w]
    found = find_overlap(test, sources)
    trained = {p for x in used for p in x.positive_ids}
    wordings = [words_of(x.query) for x in used]
    sharing = {q for q, passages in test.relevant().items() if passages & trained}
    near = set()
    for q, text in test.queries.items():
        own = words_of(text)
        if any(len(own & other) >= 0.6 * len(own | other) for other in wordings):
            near.add(q)
    assert found.keys() == sharing | near
    assert sharing < found.keys() < test.queries.keys() and near - sharing
    assert {
        q for q, why in found.items() if why.startswith("shares a relevant passage with the train query")
    } == sharing
    assert {why.rsplit(" ", 1)[1] for why in found.values()} == {"claim.train.parquet", "human.train.parquet"}
    # the guard lets synthetic queries share their source; this counts them
    assert sharing - set(find_overlap(test, sources[1:]))
    # equal ids of another corpus are other passages: what counts there is equal texts
    copy = type(corpus)("elsewhere", corpus.ids, corpus.titles, corpus.texts)
    assert find_overlap(test, [replace(source, corpus=copy) for source in sources]).keys() == found.keys()
    other = type(corpus)("elsewhere", corpus.ids, corpus.titles, pc.utf8_reverse(corpus.texts))
    assert find_overlap(test, [replace(source, corpus=other) for source in sources]).keys() == near


def foreign_corpus(folder, scifact):
    """Twelve passages and six queries of another corpus, in BEIR's layout."""
    corpus = scifact[0]
    (folder / "qrels").mkdir(parents=True)
    with open(folder / "corpus.jsonl", "w") as file:
        for row in range(200, 212):
            file.write(json.dumps({"_id": f"x{row}", "title": "", "text": corpus.texts[row].as_py()}) + "\n")
    with open(folder / "queries.jsonl", "w") as file:
        for row in range(200, 206):
            file.write(json.dumps({"_id": f"f{row}", "text": corpus.titles[row].as_py()}) + "\n")
    lines = "".join(f"f{row}\tx{row}\t1\n" for row in range(200, 206))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def test_gain_at_home_and_loss_abroad_stand_side_by_side(
    small_run, small_scifact, small_lists, scifact, tmp_path, capsys
):
    abroad = foreign_corpus(tmp_path / "abroad", scifact)
    sets = f"evaluation.datasets=[{{path: {small_scifact}}},{{path: {abroad}}}]"
    for seed in (1, 2):
        run_experiment(config_of(*small_run, sets, f"seed={seed}", "export=false"), tmp_path / "sweep" / str(seed))
    comparison = compare([tmp_path / "sweep"])
    [row] = comparison.forgetting
    assert (row.name, row.home, row.abroad) == ("small", ["small"], ["abroad"])
    assert row.gain == arm_of(comparison, "small", "small").difference
    assert row.loss == arm_of(comparison, "small", "abroad").difference
    assert [row.gain_p, row.loss_p] == holm([row.gain.p, row.loss.p])
    print_tables(comparison)
    out = capsys.readouterr().out
    assert "gain at home, loss abroad" in out and "at home" in out and f"{row.loss.mean:+.4f}" in out
    assert "gain at home, loss abroad" in page(comparison) and "home: small" in csv_text(comparison)
    assert comparison.average.queries == 26

    # the run wrote down what was asked, and what training came close to
    queries = json.loads((tmp_path / "sweep" / "1" / "queries" / "abroad.json").read_text())
    texts = load_queries(abroad)
    assert {q: words["query"] for q, words in queries.items()} == texts
    assert queries["f200"]["relevant"] == [scifact[0].texts[200].as_py()[:120] + "…"]
    small = json.loads((tmp_path / "sweep" / "1" / "queries" / "small.json").read_text())
    titles = dict(zip(scifact[0].ids.to_pylist(), scifact[0].titles.to_pylist(), strict=True))
    judged = load_qrels(small_scifact, "test")[1]
    assert all(small[q]["relevant"][0].rstrip("…") == titles[p][:120] for q in judged for p in judged[q])
    overlap = json.loads((tmp_path / "sweep" / "1" / "overlap" / "small.json").read_text())
    results = find_runs([tmp_path / "sweep" / "1"])[0][tmp_path / "sweep" / "1"]
    assert overlap.keys() < judged.keys() and results["data"]["train_lists"] > 20
    assert comparison.clean["small"].queries == 20 - len(overlap)


def test_runs_on_changed_files_are_no_seeds_of_one_arm(tmp_path):
    def run(name, seed, lists="a" * 64, weights="c" * 64, **encoder):
        config = {"name": "a", "encoder": encoder, "data": {"seed": seed}}
        write_run(tmp_path / name, "a", seed, {"d": values(seed)}, config=config)
        facts = {"inputs": {"lists/train.jsonl": lists, "corpus": "e"}, "weights": weights}
        (tmp_path / name / "environment.json").write_text(json.dumps(facts))

    def arms():
        return {arm.name: arm.seeds for arm in compare([tmp_path])["d"]}

    run("1", 1)
    run("2", 2)
    assert arms() == {"base": [], "a": [1, 2]}, "data.seed follows the seed"
    run("3", 3, lists="b" * 64)
    one, other = (f"a (inputs: lists/train.jsonl={letter * 8})" for letter in "ab")
    assert arms() == {"base": [], one: [1, 2], other: [3]}
    run("3", 3, weights="d" * 64)
    assert arms() == {"base": [], "a (weights=cccccccc)": [1, 2], "a (weights=dddddddd)": [3]}
    for seed in (1, 2, 3):  # LoRA's own weights are drawn by the seed
        run(str(seed), seed, weights=str(seed) * 64, lora={"r": 4})
    assert arms() == {"base": [], "a": [1, 2, 3]}


def test_arms_are_called_as_their_sweep_called_them(tmp_path):
    def run(name, seed, temperature, given, stated="a"):
        config = {"name": stated, "module": {"temperature": temperature}, "temperatures": {"student": temperature}}
        write_run(tmp_path / name, given, seed, {"d": values(seed)}, config=config)

    def arms():
        return {arm.name: arm.seeds for arm in compare([tmp_path])["d"]}

    run("1", 1, 0.02, "a (temperatures.student=0.02)")
    run("2", 2, 0.02, "a (temperatures.student=0.02)")
    assert arms() == {"base": [], "a": [1, 2]}, "alone, it needs no more"
    run("3", 1, 0.05, "a (temperatures.student=0.05)")
    assert arms() == {"base": [], "a (temperatures.student=0.02)": [1, 2], "a (temperatures.student=0.05)": [1]}
    run("4", 2, 0.05, "a")  # the same arm, run alone: what differs is looked up
    assert arms() == {"base": [], "a (module.temperature=0.02)": [1, 2], "a (module.temperature=0.05)": [1, 2]}
    run("5", 1, 0.1, "x", stated="a (module.temperature=0.02)")
    assert list(arms())[1:] == [
        "a (module.temperature=0.02) (named a)",
        "a (module.temperature=0.05)",
        "a (module.temperature=0.02) (named a (module.temperature=0.02))",
    ]


def test_an_arm_that_is_called_base_is_not_the_model_before_training(tmp_path):
    write_run(tmp_path / "1", "base", 1, {"d": values(1)})
    write_run(tmp_path / "2", "base of a", 1, {"d": values(2)})
    comparison = compare([tmp_path])
    assert [arm.name for arm in comparison["d"]] == ["base", "base (trained)", "base of a (trained)"]
    assert comparison["d"][0].ndcg == pytest.approx(values(0).mean())

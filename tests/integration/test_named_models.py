"""The model that a user names is what runs: presets, folders, the hub's cache, and what a model's own files state."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    ByT5Tokenizer,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from datamodules.caches import embed
from datamodules.pipeline.engines.choice import choose_engine
from experiments.settings.older_runs import as_now
from experiments.training.train import run_experiment
from helpers.runs import CONF, config_of
from helpers.tiny_models import backbone_of, tokenizer_of, write_model
from retriever.cross_encoder.cross_encoder import CrossEncoder
from retriever.encoder.spec import EncoderSpec
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.pretrained.source import find_model
from retriever.teachers.sequence_classifier import SequenceClassifier

SPEC = EncoderSpec.__dataclass_fields__

pytestmark = pytest.mark.slow

TEXTS = ["Aspirin lowers the risk of stroke.", "a", "Cells divide: query, passage and other things."]
SIZE = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a random BERT that says nothing of pooling."""
    return write_model("bert", tmp_path_factory.mktemp("named") / "bert", TEXTS * 3)


@pytest.fixture
def sentence_model(bert, tmp_path):
    """A function that writes a sentence-transformers folder of the BERT, and gives the folder."""

    def make(**options):
        model = SentenceTransformer(str(bert), device="cpu", **options)
        model.save(str(tmp_path / "sentence_model"))
        return tmp_path / "sentence_model"

    return make


def ours(encoder, kind="passage", texts=TEXTS):
    return embed(encoder.tokenize(texts, kind), encoder.eval(), 1000)


def rewrite(path: Path, **values) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


# presets


def test_a_preset_counts_for_its_own_model_alone(bert):
    preset = {"model": str(bert), "pooling": "cls", "query_prompt": "query: ", "passage_max_length": 20}
    spec = TextEncoder.from_pretrained(str(bert), preset=preset).spec
    assert (spec.pooling, spec.query_prompt, spec.passage_max_length) == ("cls", "query: ", 20)
    spec = TextEncoder.from_pretrained(str(bert), preset=preset, query_prompt="", pooling="mean").spec
    assert (spec.pooling, spec.query_prompt, spec.passage_max_length) == ("mean", "", 20)
    other = preset | {"model": "another", "packaged": {"distribution": "x", "folder": "y", "sha256": "z"}}
    spec = TextEncoder.from_pretrained(str(bert), preset=other, pooling="last").spec
    assert (spec.pooling, spec.query_prompt, spec.passage_max_length) == ("last", "", 64)
    for wrong, message in {"poling": "Did you mean 'pooling'", "model": r"encoder\.preset\.model is None"}.items():
        with pytest.raises(InputError, match=message):
            TextEncoder.from_pretrained(str(bert), preset=preset | {wrong: None}, pooling="cls")


def test_every_preset_that_ships_is_about_the_model_beside_it():
    names = [path.stem for path in (CONF / "encoder").glob("*.yaml") if not path.stem.startswith(("_", "cross"))]
    assert len(names) > 12
    for name in names:
        encoder = config_of(f"encoder={name}").encoder
        assert encoder.preset.model == encoder.model and not encoder.pooling
        assert encoder.preset.pooling == ("last" if name.startswith("qwen3") else encoder.preset.pooling)
        assert EncoderSpec(**{key: encoder.preset[key] for key in SPEC if key in encoder.preset}).normalize
    cross = config_of("encoder=cross_minilm", "module=reranker").encoder
    assert cross.preset.model == cross.model and cross.preset.pair_max_length == 192


@pytest.mark.parametrize("name", ["minilm", "bge_base"])
def test_a_folder_on_top_of_a_preset_is_what_is_trained(small_run, sentence_model, tmp_path, name):
    folder = sentence_model(
        prompts={"query": "query: ", "document": "passage: "}, processor_kwargs={"model_max_length": 40}
    )
    options = [f"encoder={name}", *(o for o in small_run if not o.startswith("encoder."))]
    run_experiment(config_of(*options, f"encoder.model={folder}", "trainer.max_steps=1"), tmp_path / "run")
    weights = TextEncoder.from_pretrained(str(folder)).fingerprint()
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["weights"] == weights
    spec = TextEncoder.from_pretrained(str(tmp_path / "run" / "model")).spec
    assert (spec.query_prompt, spec.passage_prompt, spec.passage_max_length) == ("query: ", "passage: ", 40)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./none", "~/no_such", "a/b/c", "{bert}/none", "tests/none", "a b"]
)
def test_what_is_no_folder_is_refused_wherever_a_model_is_named(bert, tmp_path, name):
    name = name.format(bert=bert)
    said = re.escape(f"{name!r}: no such model folder")
    named = {"model": name, "sampling": {}, "cache_dir": tmp_path, "engine": "transformers"}
    for setting, load in (
        ("encoder", lambda: TextEncoder.from_pretrained(name, pooling="mean")),
        ("encoder", lambda: CrossEncoder.from_pretrained(name)),
        ("teacher", lambda: SequenceClassifier(name)),
        ("generator", lambda: choose_engine(**named).settings()),
    ):
        with pytest.raises(InputError, match=rf"{setting}\.model is {said}"):
            load()


def test_a_wrong_name_meets_the_nearest_folder(bert):
    with pytest.raises(InputError, match="Did you mean 'bert'"):
        find_model(f"{bert}t")
    with pytest.raises(InputError, match="a file"):
        find_model(f"{bert}/config.json")
    with pytest.raises(InputError, match=r"encoder\.revision is 'main', but .* Say encoder\.revision=null"):
        find_model(str(bert), "main")


def test_a_packaged_generator_is_not_loaded_for_another_name(tiny_chat_model, tmp_path):
    own = {"distribution": "torch", "file": "none.gguf", "sha256": "0"}
    options = {
        "sampling": {},
        "cache_dir": tmp_path,
        "engine": "transformers",
        "preset": {"model": "a/b", "packaged": own},
    }
    assert choose_engine(model=str(tiny_chat_model), **options).model == str(tiny_chat_model)
    with pytest.raises(InputError, match="These are not the known weights"):
        choose_engine(model="a/b", **options)


def test_origins_are_said(bert):
    assert TextEncoder.from_pretrained(str(bert), pooling="cls").origin == f"folder {bert}"
    assert CrossEncoder.from_pretrained(str(bert)).origin == f"folder {bert}"
    assert SequenceClassifier(str(bert)).origin == f"folder {bert}"
    assert SequenceClassifier("a/b", revision="v2").origin == "hub a/b at v2"


def test_a_model_of_the_hub_is_read_with_all_its_files_at_one_commit(sentence_model, no_hub):
    folder = sentence_model(prompts={"query": "query: "}, processor_kwargs={"model_max_length": 40})
    for commit, length in {"a" * 40: 40, "b" * 40: 30}.items():
        snapshot = no_hub / "models--someone--some-model" / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        rewrite(snapshot / "sentence_bert_config.json", max_seq_length=length)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    for revision, (commit, length) in {None: ("a" * 40, 40), "b" * 40: ("b" * 40, 30)}.items():
        encoder = TextEncoder.from_pretrained("someone/some-model", revision=revision)
        assert encoder.origin == f"hub someone/some-model at {commit}"
        assert (encoder.spec.pooling, encoder.spec.query_prompt) == ("mean", "query: ")
        assert encoder.spec.passage_max_length == length
    with pytest.raises(InputError, match=r"at revision 'v3': there is no folder .* HF_HUB_OFFLINE"):
        TextEncoder.from_pretrained("someone/some-model", revision="v3")


def test_a_run_folder_of_an_earlier_version_means_the_same(tmp_path, caplog):
    now = OmegaConf.to_container(config_of("encoder=minilm").encoder, resolve=True)
    before = {k: v for k, v in now.items() if k != "preset"} | now["preset"] | {"attention": "sdpa"}
    assert as_now(before) == now and not caplog.records
    wrong = as_now(before | {"model": "/a/folder"})
    assert "packaged" not in wrong["preset"] and "now what is named is loaded" in caplog.text
    assert as_now({"encoder": now}) == {"encoder": now}


def test_a_run_of_before_a_setting_was_there_has_the_value_that_does_what_it_did():
    config = config_of("name=x", "data.dev=null")
    now = OmegaConf.to_container(config, resolve=True)
    before = copy.deepcopy(now)
    del before["data"]["leak_near_passages"]
    scheduler = before.pop("scheduler")
    before["module"] |= {name: scheduler[name] for name in ("warmup_steps", "final_learning_rate")}  # and no decay
    for name in ("optimizer", "callbacks", "empty_passages", "on_bad_list", "unknown_qrels"):
        del before[name]
    before["data"] |= {"empty_passages": "error", "dev_fraction": 0.1}
    before["evaluation"]["empty_passages"] = "error"
    assert as_now(before) == now and as_now(now) == now


# what a folder states


def test_a_cut_that_a_folder_states_is_read(sentence_model):
    folder = sentence_model(truncate_dim=16)
    encoder = TextEncoder.from_pretrained(str(folder))
    assert encoder.dimension == 16
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(ours(encoder), theirs, atol=1e-6)
    exported = encoder.save(folder.parent / "exported")
    np.testing.assert_allclose(SentenceTransformer(str(exported)).encode_query(TEXTS), theirs, atol=1e-6)
    # our cut, written anew by sentence-transformers with another one
    anew = folder.parent / "anew"
    SentenceTransformer(str(exported), truncate_dim=8, device="cpu").save(str(anew))
    assert TextEncoder.from_pretrained(str(anew)).dimension == 8


@pytest.mark.parametrize("where", ["tokenizer_config.json", "sentence_bert_config.json"])
def test_lengths_that_a_folder_states_are_read(sentence_model, where):
    folder = sentence_model()
    rewrite(folder / where, **{"tokenizer_config.json": {"model_max_length": 30}}.get(where, {"max_seq_length": 30}))
    spec = TextEncoder.from_pretrained(str(folder)).spec
    assert (spec.query_max_length, spec.passage_max_length) == (30, 30)
    rewrite(folder / "sentence_bert_config.json", query_length=9, document_length=11)
    spec = TextEncoder.from_pretrained(str(folder)).spec
    assert (spec.query_max_length, spec.passage_max_length) == (9, 11)
    assert TextEncoder.from_pretrained(str(folder), query_max_length=64).spec.query_max_length == 64
    with pytest.raises(InputError, match=r"encoder\.query_max_length is 65, but .* has 64 positions"):
        TextEncoder.from_pretrained(str(folder), query_max_length=65)


def test_a_default_length_is_lowered_to_what_a_model_reads(bert):
    spec = TextEncoder.from_pretrained(str(bert), pooling="mean").spec
    assert (spec.query_max_length, spec.passage_max_length) == (64, 64)
    spec = CrossEncoder.from_pretrained(str(bert)).spec
    assert (spec.query_max_length, spec.passage_max_length, spec.pair_max_length) == (32, 64, 64)


PROMPTS = {"query": "q: ", "passage": "p: "}


@pytest.mark.parametrize(
    ("main", "query", "passage"),
    [
        ({"prompts": PROMPTS}, "q: ", "p: "),
        ({"prompts": PROMPTS | {"document": ""}}, "q: ", "p: "),
        ({"prompts": PROMPTS | {"document": "d: "}}, "q: ", "d: "),
        ({"prompts": {"search_query": "sq: ", "search_document": "sd: "}}, "sq: ", "sd: "),
        ({"prompts": {"any": "x: "}, "default_prompt_name": "any"}, "x: ", "x: "),
        ({"prompts": {"any": "x: ", "query": "q: "}, "default_prompt_name": "any"}, "q: ", "x: "),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, "q: ", ""),
        ({"prompts": {"sts": "x: "}}, "", ""),
    ],
)
def test_prompts_that_a_folder_states_are_read(sentence_model, caplog, main, query, passage):
    folder = sentence_model()
    rewrite(folder / "config_sentence_transformers.json", default_prompt_name=None)
    rewrite(folder / "config_sentence_transformers.json", **main)
    spec = TextEncoder.from_pretrained(str(folder)).spec
    assert (spec.query_prompt, spec.passage_prompt) == (query, passage)
    assert ("none is used" in caplog.text) == (not query)


def test_lower_case_that_a_folder_states_is_kept(tmp_path):
    model = SentenceTransformer(str(write_model("roberta", tmp_path / "roberta", TEXTS * 3)), device="cpu")
    model.save(str(tmp_path / "lower"))
    rewrite(tmp_path / "lower" / "sentence_bert_config.json", do_lower_case=True)
    encoder = TextEncoder.from_pretrained(str(tmp_path / "lower"), normalize=False)
    exported = encoder.save(tmp_path / "exported")
    for path in (tmp_path / "lower", exported):
        theirs = SentenceTransformer(str(path), device="cpu").encode_document(TEXTS)
        np.testing.assert_allclose(ours(encoder), theirs, atol=1e-5)
    upper = [text.upper() for text in TEXTS]
    np.testing.assert_array_equal(ours(encoder, texts=upper), ours(encoder))
    assert not np.allclose(model.encode(upper), theirs, atol=1e-3)


def test_what_a_folder_states_and_no_text_encoder_does_is_refused(sentence_model, bert):
    folder = sentence_model()
    pooling, main, first = (
        folder / name
        for name in ("1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json")
    )
    whole = {path: path.read_text() for path in (pooling, main, first, folder / "modules.json")}
    modules = json.loads(whole[folder / "modules.json"])
    other = [*modules, {"path": "2_LayerNorm", "type": "sentence_transformers.models.LayerNorm"}]
    twice = [*modules[:2], *modules[1:]]
    own = [{"path": "", "type": "custom_st.Transformer"}, *modules[1:]]
    below = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}, *modules[1:]]
    chat = {"text": {"method": "forward"}, "message": {"method": "forward"}}
    for path, content, message in [
        (pooling, {"pooling_mode": ["mean", "cls"]}, r"\['mean', 'cls'\] is not supported"),
        (pooling, {"pooling_mode": "weightedmean"}, r"\['weightedmean'\] is not supported"),
        (pooling, {"pooling_mode": "mean", "include_prompt": False}, None),
        (main, {"similarity_fn_name": "manhattan"}, "compares by cosine or dot product"),
        (main, {"default_prompt_name": "none"}, "none of its prompts"),
        (first, {"modality_config": chat}, "a chat template"),
        (first, {"max_seq_length": "long"}, "whole number of at least 3"),
        (folder / "modules.json", other, r"modules \['LayerNorm'\] are not supported"),
        (folder / "modules.json", twice, "several of Dense alone"),
        (folder / "modules.json", own, "Python code that the model brings"),
        (folder / "modules.json", below, "lies in the subfolder 0_Transformer"),
    ]:
        path.write_text(json.dumps(content))
        if message is None:  # without a prompt, there is none to leave out
            assert TextEncoder.from_pretrained(str(folder)).spec.pooling == "mean"
            with pytest.raises(InputError, match=r"include_prompt is false"):
                TextEncoder.from_pretrained(str(folder), query_prompt="query: ")
        else:
            with pytest.raises(InputError, match=message):
                TextEncoder.from_pretrained(str(folder))
        path.write_text(whole[path])
    assert TextEncoder.from_pretrained(str(folder)).spec.pooling == "mean"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_cls_token": False}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken"}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_poolings_of_both_layouts_are_read(sentence_model, config, pooling):
    folder = sentence_model()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert TextEncoder.from_pretrained(str(folder)).spec.pooling == pooling


@pytest.mark.parametrize(("similarity", "normalize"), [("dot", False), ("cosine", True), (None, True)])
def test_similarity_that_a_folder_states_is_read(sentence_model, similarity, normalize):
    folder = sentence_model()
    rewrite(folder / "config_sentence_transformers.json", similarity_fn_name=similarity)
    assert TextEncoder.from_pretrained(str(folder)).spec.normalize is normalize


def test_weights_in_half_precision_are_trained_and_exported_in_whole(bert, tmp_path):
    backbone_of("bert", len(tokenizer_of("bert", TEXTS * 3))).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer_of("bert", TEXTS * 3).save_pretrained(tmp_path / "half")
    encoder = TextEncoder.from_pretrained(str(tmp_path / "half"), pooling="mean")
    theirs = SentenceTransformer(str(encoder.save(tmp_path / "exported")), device="cpu")
    assert next(theirs.parameters()).dtype == torch.float32
    np.testing.assert_allclose(ours(encoder), theirs.encode_document(TEXTS), atol=1e-6)


@pytest.mark.parametrize(("prompt", "warned"), [("Instruct: x\\nQuery: ", True), ("Instruct: x\nQuery: ", False)])
def test_a_backslash_n_in_a_prompt_is_warned_of(bert, caplog, prompt, warned):
    encoder = TextEncoder.from_pretrained(str(bert), pooling="mean", query_prompt=prompt)
    assert ("no new line" in caplog.text) == warned and encoder.spec.query_prompt == prompt


def test_a_folder_of_adapters_is_refused_with_advice_that_works(bert, tmp_path, monkeypatch):
    tuned = get_peft_model(
        AutoModel.from_pretrained(bert), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "adapters")
    tokenizer_of("bert", TEXTS * 3).save_pretrained(tmp_path / "adapters")
    with pytest.raises(InputError, match=f"holds adapters for {bert}") as refused:
        TextEncoder.from_pretrained(str(tmp_path / "adapters"), pooling="mean")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'python -c "(.*)"', str(refused.value))[1], {})
    expected = tuned.merge_and_unload().get_parameter("encoder.layer.0.attention.self.query.weight")
    merged = TextEncoder.from_pretrained("MERGED", pooling="mean").backbone
    torch.testing.assert_close(merged.get_parameter("encoder.layer.0.attention.self.query.weight"), expected)


# architectures


@pytest.mark.parametrize("of", [TextEncoder, CrossEncoder])
@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2"])
def test_a_model_without_sdpa_runs_eagerly_and_says_so(tmp_path, caplog, kind, of):
    folder = str(write_model(kind, tmp_path / kind, TEXTS * 3))
    options = {"pooling": "mean"} if of is TextEncoder else {}
    encoder = of.from_pretrained(folder, **options)
    assert encoder.backbone.config._attn_implementation == "eager" and "eager is used" in caplog.text
    with pytest.raises(InputError, match=r"encoder\.attention is 'sdpa', .* encoder\.attention=null .* or eager\.$"):
        of.from_pretrained(folder, attention="sdpa", **options)


def test_a_tokenizer_of_bytes_has_no_vocabulary(tmp_path):
    size = {"vocab_size": 384, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**size)).save_pretrained(tmp_path / "byt5")
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    encoder = TextEncoder.from_pretrained(str(tmp_path / "byt5"), pooling="mean")
    theirs = SentenceTransformer(str(encoder.save(tmp_path / "model")), device="cpu").encode_document(TEXTS)
    assert np.allclose(ours(encoder), theirs, atol=1e-6)


def test_the_encoder_of_a_whole_t5_is_loaded_and_other_pairs_are_refused(tmp_path):
    tokenizer = tokenizer_of("t5", TEXTS * 3)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    whole = T5ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    encoder = TextEncoder.from_pretrained(str(tmp_path / "t5"), pooling="mean", normalize=False)
    assert type(encoder.backbone).__name__ == "T5EncoderModel"
    batch = tokenizer(TEXTS[:1], return_tensors="pt")
    with torch.inference_mode():
        expected = whole.eval().encoder(**batch).last_hidden_state.mean(1)
    np.testing.assert_allclose(ours(encoder)[:1], expected, atol=1e-5)
    theirs = SentenceTransformer(str(encoder.save(tmp_path / "exported")), device="cpu")
    np.testing.assert_allclose(ours(encoder), theirs.encode_document(TEXTS), atol=1e-5)
    BartModel(BartConfig(vocab_size=len(tokenizer), d_model=16, **SIZE)).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    with pytest.raises(InputError, match=r"encoder and decoder \(bart\)"):
        TextEncoder.from_pretrained(str(tmp_path / "bart"), pooling="mean")
    for name in ("t5", "bart"):
        with pytest.raises(InputError, match=rf"encoder and decoder \({name}\).* which a cross-encoder here is not"):
            CrossEncoder.from_pretrained(str(tmp_path / name))


def test_code_of_a_models_own_is_one_sentence_that_names_the_switch(bert, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(bert, folder)
    rewrite(folder / "config.json", model_type="own", auto_map={"AutoConfig": "c.C", "AutoModel": "m.M"})
    for setting, load in {
        "encoder": lambda: TextEncoder.from_pretrained(str(folder), pooling="mean"),
        "teacher": lambda: SequenceClassifier(str(folder)).load(),
    }.items():
        with pytest.raises(InputError, match=rf"brings Python code .* say {setting}\.trust_remote_code=true\.$"):
            load()

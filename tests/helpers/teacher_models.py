"""Random cross-encoders and language models of two layers, with the kinds of tokenizers that teachers have."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from helpers.tiny_tokenizers import word_piece
from retriever.teachers.layered_gemma import LayeredGemmaConfig, LayeredGemmaModel


def size(**more):
    """A tiny transformer's sizes."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 160,
    } | more


def save_tokenizer(folder, tokenizer, **names):
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def word_pieces(folder, texts):
    """As BERT's and DeBERTa's."""
    tokenizer = word_piece(texts, vocab_size=400)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    save_tokenizer(folder, tokenizer, **names)
    settings = {**names, "tokenizer_class": "BertTokenizer"}  # which gives token types
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


def byte_pairs(folder, texts, special=("<s>", "<pad>", "</s>", "<unk>"), roberta=True):
    """As RoBERTa's, or without anything around the text, as Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*texts, "yes no " * 50, "yes" * 50],
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(["yes", "no"])
    if not roberta:
        return save_tokenizer(folder, tokenizer, pad_token=special[1], eos_token=special[2])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return save_tokenizer(
        folder,
        tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def unigrams(folder, texts, t5=True):
    """As T5's (``$A </s>``) or XLM-R's (``<s> $A </s> </s> $B </s>``)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<s>"] + ([f"<extra_id_{i}>" for i in range(12)] if t5 else [])
    tokenizer.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    learned = json.loads(tokenizer.to_str())["model"]["vocab"]
    words = [[f"▁{word}", -5.0] for word in ("true", "false", "Query", "Document", "Relevant")] + [[":", -5.0]]
    tokenizer.model = models.Unigram([(token, score) for token, score in learned + words], unk_id=2)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>" if t5 else "<s> $A </s>",
        pair="$A </s> $B </s>" if t5 else "<s> $A </s> </s> $B </s>",
        special_tokens=[("</s>", 1), ("<s>", 3)],
    )
    return save_tokenizer(
        folder,
        tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def save_model(folder, name, config, spread=1.0, **settings):
    """A random model; ``spread`` scales its weights, so that scores differ visibly."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(spread)
    model.save_pretrained(folder)
    return str(folder)


def bert_classifier(folder, texts, labels, **more):
    """The folder of a BERT with so many logits."""
    tokenizer = word_pieces(folder, texts)
    # vLLM wants heads of 32 on a CPU
    sizes = size(vocab_size=len(tokenizer), num_labels=labels, hidden_size=64, **more)
    return save_model(folder, "BertForSequenceClassification", "BertConfig", 15.0, **sizes)


def real_and_odd_pairs(scifact):
    """Real queries and passages of all lengths, and the odd ones."""
    corpus, queries, _ = scifact
    asked = list(queries.values())[:24]
    told = [t[: 30 + 40 * i] for i, t in enumerate(corpus.texts.slice(0, 24).to_pylist())]
    odd = [
        (asked[0], ""),
        ("", "A passage without a query."),
        ("Is {passage} a {query}?", "{query} and {passage} Relevant: true"),
        ("naïve  café ﬁ", "  two  spaces, a tab\tand\na line — 日本語 🙂 " * 12),
        ("<Document>: x", "ends in a space "),
        (asked[1], told[1]),
    ]
    return asked + [q for q, _ in odd], told + [p for _, p in odd]


def layered_gemma(folder, texts, **more):
    """As on the hub: a Gemma 2 with a head at each layer from one on, which names Python code that is not run."""
    tokenizer = byte_pairs(folder, texts, ("<bos>", "<pad>", "<eos>"), roberta=False)
    path = Path(folder) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<bos>"}))
    sizes = size(num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    model = LayeredGemmaModel(LayeredGemmaConfig(layer_sep=1, layer_wise=True, pad_token_id=1, **sizes | more))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    model.save_pretrained(folder)
    path = Path(folder) / "config.json"
    code = {"AutoConfig": "gemma_config.CostWiseGemmaConfig", "AutoModelForCausalLM": "gemma_model.CostWiseGemma"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": code, "architectures": ["CostWiseGemma"]}))
    return str(folder)

"""Random models of two layers, one of each architecture that retrievers have, with its kind of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from helpers.tiny_tokenizers import word_piece

_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_WIDE = {**_SIZE, "intermediate_size": 64}
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
KINDS = ("bert", "roberta", "mpnet", "deberta-v2", "modernbert", "t5", "gpt2", "llama", "qwen3", "gemma3")


def byte_pairs(texts: Iterable[str], special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level tokenizer, ``special`` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return state["vocab"], [tuple(pair) for pair in state["merges"]]


def tokenizer_of(kind: str, texts: list[str]) -> hf.PreTrainedTokenizerBase:
    """A tokenizer of the class that models of this kind have."""
    if kind in ("bert", "mpnet", "modernbert"):
        pieces = word_piece(texts, vocab_size=3000).get_vocab()
        if kind == "bert":
            return hf.BertTokenizer(vocab=pieces)
        if kind == "mpnet":
            names = {"[PAD]": "<pad>", "[UNK]": "[UNK]", "[CLS]": "<s>", "[SEP]": "</s>"}
            return hf.MPNetTokenizer(vocab={names.get(piece, piece): number for piece, number in pieces.items()})
        tokenizer = word_piece(texts, vocab_size=3000)
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
    if kind in ("t5", "deberta-v2"):
        special = ["<pad>", "</s>", "<unk>"] if kind == "t5" else ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        words = sorted({"▁" + word for text in texts for word in text.split()})
        characters = sorted({c for text in texts for c in text} | {"▁"})
        pieces = [(piece, 0.0) for piece in special] + [(c, -12.0) for c in characters] + [(w, -8.0) for w in words]
        if kind == "t5":
            return hf.T5Tokenizer(vocab=pieces, extra_ids=0)
        return hf.DebertaV2Tokenizer(vocab=pieces, unk_id=3)
    if kind == "roberta":
        vocab, merges = byte_pairs(texts, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        return hf.RobertaTokenizer(vocab=vocab, merges=merges)
    if kind == "gpt2":
        vocab, merges = byte_pairs(texts, ["<|endoftext|>"])
        return hf.GPT2Tokenizer(vocab=vocab, merges=merges)  # without a padding token
    if kind == "llama":
        tokenizer = _byte_level(texts, ["<|begin_of_text|>", "<|end_of_text|>"])
        first = [("<|begin_of_text|>", 0)]
        tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=first)
        tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **tokens)
    if kind == "gemma3":
        tokenizer = _byte_level(texts, ["<pad>", "<eos>", "<bos>"])
        ends = [("<bos>", 2), ("<eos>", 1)]
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=ends)
        tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
        return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **tokens)
    tokenizer = _byte_level(texts, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    last = [("<|endoftext|>", 0)]
    tokenizer.post_processor = processors.TemplateProcessing("$A <|endoftext|>", special_tokens=last)
    tokens = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **tokens)
    fast.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    return fast


def _byte_level(texts: list[str], special: list[str]) -> Tokenizer:
    vocab, merges = byte_pairs(texts, special)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    return tokenizer


def backbone_of(kind: str, words: int) -> hf.PreTrainedModel:
    """A random backbone with a vocabulary of so many tokens."""
    torch.manual_seed(0)
    size, heads = {"vocab_size": words}, {"num_key_value_heads": 1, "head_dim": 16}
    if kind == "bert":
        return hf.BertModel(hf.BertConfig(**size, **_WIDE, max_position_embeddings=64))
    if kind == "roberta":
        return hf.RobertaModel(hf.RobertaConfig(**size, **_WIDE, max_position_embeddings=66, type_vocab_size=1))
    if kind == "mpnet":
        return hf.MPNetModel(hf.MPNetConfig(**size, **_WIDE, max_position_embeddings=66))
    if kind == "deberta-v2":
        relative = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False}
        positions = {"max_position_embeddings": 64, "type_vocab_size": 0, "position_buckets": 16, **relative}
        return hf.DebertaV2Model(hf.DebertaV2Config(**size, **_WIDE, **positions, share_att_key=True))
    if kind == "modernbert":
        ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        return hf.ModernBertModel(hf.ModernBertConfig(**size, **_WIDE, **ids, max_position_embeddings=64))
    if kind == "t5":
        return hf.T5EncoderModel(hf.T5Config(**size, **_T5))
    if kind == "gpt2":
        ids = {"bos_token_id": 0, "eos_token_id": 0}
        return hf.GPT2Model(hf.GPT2Config(**size, **ids, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    if kind == "llama":
        return hf.LlamaModel(hf.LlamaConfig(**size, **_WIDE, **heads, max_position_embeddings=64))
    if kind == "gemma3":  # as in EmbeddingGemma: no token is hidden, and most layers look at the tokens nearby alone
        sight = {"use_bidirectional_attention": True, "sliding_window": 8}
        layers = {"layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 64}
        return hf.Gemma3TextModel(hf.Gemma3TextConfig(**size, **_WIDE, **heads, **sight, **layers))
    return hf.Qwen3Model(hf.Qwen3Config(**size, **_WIDE, **heads, max_position_embeddings=64))


def write_model(kind: str, folder: Path, texts: list[str]) -> Path:
    """A folder that ``transformers`` loads."""
    tokenizer = tokenizer_of(kind, texts)
    backbone_of(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

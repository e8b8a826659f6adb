"""A WordPiece tokenizer made from the tests' texts, the same in every process."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def word_piece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The special tokens with ids 0 to 3, every character as a word's begin and inside, the most frequent words.

    ``WordPieceTrainer`` would find other pieces under other numbers in every process, and a random model's scores
    would change with them.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    split = (splitter.pre_tokenize_str(normalizer.normalize_str(text)) for text in texts)
    counts = Counter(word for words in split for word, _ in words)
    characters = sorted(set().union(*counts))
    frequent = [w for w in sorted(counts, key=lambda w: (-counts[w], w)) if len(w) > 1]
    pieces = [*SPECIAL, *characters, *(f"##{c}" for c in characters), *frequent][:vocab_size]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer

"""Near-equality, BM25, query cleaning and near copies in scripts with and without spaces between words."""

import json
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.corpus import Corpus, load_corpus
from datamodules.hits import bm25_search
from datamodules.leakage.queries import find_leaks
from datamodules.pipeline.query_cleaning import clean_query, copied_run, language_notes
from datamodules.pipeline.query_types import QueryType
from datamodules.pipeline.searchers import Bm25
from datamodules.pipeline.stages.deduplicate import Deduplicate
from datamodules.pipeline.stages.mine import Mine
from datamodules.pipeline.stages.queries import CollectQueries
from datamodules.pipeline.stages.stage import run_stage
from datamodules.text.words import count_words, fold, main_script, normalize_texts, search_terms, terms, words

PLAIN = QueryType("question", "Ask.", (), 0, ())


@dataclass(frozen=True)
class Written:
    """A question, nearly the same one, one about barley, and a passage that answers the first."""

    question: str
    alike: str
    other: str
    passage: str


SCRIPTS = {
    "chinese": Written(
        "请问一下我应该如何修理铜壶的把手",
        "请问一下我应该怎样修理铜壶的把手",
        "冬天的大麦什么时候收割比较好",
        "铜壶的把手松了，先把它拆下来，清理干净以后再用锡焊好。",
    ),
    "japanese": Written(
        "銅のやかんの取っ手を修理するにはどうすればいいですか",
        "銅のやかんの取っ手を修理するには何をすればいいですか",
        "冬の大麦はいつ収穫するのがよいでしょう",
        "やかんの取っ手が外れたら、銅の鋲を新しくして、はんだで留め直す。",
    ),
    "thai": Written(
        "ฉันจะซ่อมหูจับของกาต้มน้ำทองแดงได้อย่างไร",
        "ฉันจะซ่อมหูจับของกาต้มน้ำทองแดงด้วยวิธีไหน",
        "เราควรเก็บเกี่ยวข้าวบาร์เลย์ฤดูหนาวเมื่อไร",
        "หูจับของกาทองแดงที่หลวมควรถอดออกก่อนแล้วจึงบัดกรีใหม่",
    ),
    "lao": Written(
        "ຂ້ອຍຈະສ້ອມແປງມືຈັບຂອງກາຕົ້ມນ້ຳທອງແດງໄດ້ແນວໃດ",
        "ຂ້ອຍຈະສ້ອມແປງມືຈັບຂອງກາຕົ້ມນ້ຳທອງແດງດ້ວຍວິທີໃດ",
        "ເຮົາຄວນເກັບກ່ຽວເຂົ້າບາເລລະດູໜາວເມື່ອໃດ",
        "ມືຈັບຂອງກາທອງແດງທີ່ຫຼົມຄວນຖອດອອກກ່ອນ",
    ),
    "khmer": Written(
        "តើខ្ញុំត្រូវជួសជុលដៃកាន់កំសៀវទង់ដែងយ៉ាងដូចម្តេច",
        "តើខ្ញុំត្រូវជួសជុលដៃកាន់កំសៀវទង់ដែងដោយរបៀបណា",
        "តើយើងគួរច្រូតស្រូវសាលីរដូវរងានៅពេលណា",
        "ដៃកាន់កំសៀវទង់ដែងដែលរលុងត្រូវដោះចេញជាមុន",
    ),
    "burmese": Written(
        "ကြေးနီရေနွေးအိုးလက်ကိုင်ကိုဘယ်လိုပြင်ရမလဲ",
        "ကြေးနီရေနွေးအိုးလက်ကိုင်ကိုဘယ်လိုပြုပြင်မလဲ",
        "ဆောင်းရာသီမုယောစပါးဘယ်အချိန်ရိတ်သင့်သလဲ",
        "ကြေးနီအိုး၏လက်ကိုင်ချောင်နေလျှင်အရင်ဖြုတ်ပြီးမှပြင်ပါ",
    ),
    "korean": Written(
        "구리 주전자의 손잡이를 어떻게 수리하나요",
        "구리 주전자 손잡이를 어떻게 고치나요",
        "겨울 보리는 언제 거두는 것이 좋은가요",
        "주전자에서 손잡이가 떨어지면 먼저 작은 구리 못을 새로 박는다.",
    ),
    "arabic": Written(
        "كيف أصلح مقبض الغلاية النحاسية القديمة",
        "كَيْفَ أُصْلِحُ مِقْبَضَ الغـــلاية النُّحاسيّة",
        "متى نحصد شعير الشتاء في الحقول",
        "يُفَكّ مقبض الغلاية أولا ثم يعاد لحامه بالقصدير.",
    ),
    "cyrillic": Written(
        "Как мне починить ручку старого медного чайника",
        "Как мне починить ручку нового ме́дного чайника",
        "Когда лучше убирать озимый ячмень",
        "Сначала снимите ручку чайника, затем припаяйте ее оловом.",
    ),
    "devanagari": Written(
        "मैं तांबे की केतली का हैंडल कैसे ठीक करूँ",
        "मैं तांबे की केतली का हैंडल कैसे बदलूँ",
        "सर्दियों में जौ कब काटना चाहिए",
        "पहले केतली का हैंडल खोलें, फिर उसे टांके से जोड़ें।",
    ),
    "accents": Written(
        "Comment réparer la poignée cassée de ma théière",
        unicodedata.normalize("NFD", "Comment réparer la poignée abîmée de ma théière"),
        "Quand récolter l'orge d'été",
        unicodedata.normalize("NFD", "La poignée de la théière se démonte, puis se ressoude à l'étain."),
    ),
}
written = pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)


def others_than(text):
    return [t.passage for t in SCRIPTS.values() if t is not text] + [t.other for t in SCRIPTS.values()]


@written
def test_a_nearly_equal_query_is_found_and_another_is_not(text):
    evaluation = {"e": text.question}
    found = find_leaks([text.other, text.alike, text.question], None, evaluation, {}, 0.6)
    assert [leak.position for leak in found] == [1, 2]
    assert 0.6 <= found[0].similarity < 1 == found[1].similarity
    decomposed = find_leaks([unicodedata.normalize("NFD", text.question)], None, evaluation, {}, 1.0)
    assert len(decomposed) == 1


@written
def test_bm25_finds_the_passage(text):
    passages = [*others_than(text), text.passage]
    for form in ("NFC", "NFD"):
        queries = [unicodedata.normalize(form, query) for query in (text.question, text.other)]
        hits = bm25_search(passages, queries, 3)
        assert hits.rows[0, 0] == len(passages) - 1
        assert passages[hits.rows[1, 0]] == text.other


@written
def test_a_query_of_its_own_words_passes_and_copies_do_not(text):
    assert clean_query(text.question, True, text.passage, PLAIN, [], None)[1] is None
    assert clean_query(text.passage, True, text.passage, PLAIN, [], None)[1] == "copied from the passage"
    assert (
        clean_query(text.alike, True, text.passage, PLAIN, [("", text.question)], None)[1] == "copied from an example"
    )
    long = " ".join((text.question, text.other, text.passage, text.question))
    assert clean_query(long, True, text.other, PLAIN, [], None)[1] == "too long"
    assert clean_query(" ".join([text.other] * 3), True, text.passage, PLAIN, [], None)[1] in (
        "repeats itself",
        "too long",
    )
    assert 4 <= count_words(text.question) <= 16


@written
def test_copies_and_near_copies_of_a_passage_fall_out(text, tmp_path):
    long = f"{text.passage} {text.question} {text.other} " * 2
    near = long.replace(text.question, text.alike, 1)
    marks = "。！？،।.!?"
    copy = unicodedata.normalize("NFD", "".join(c for c in long if c not in marks)).upper()
    texts = [long, text.passage, *others_than(text), near, copy]
    ids = [f"p{n}" for n in range(len(texts))]
    corpus = Corpus("made", *(pa.array(column) for column in (ids, [""] * len(texts), texts)))
    output = run_stage(Deduplicate(corpus, near_jaccard=0.6), tmp_path)
    removed = {r["passage_id"]: r for r in pq.read_table(output.file("removed.parquet")).to_pylist()}
    fallen = {passage: row["kept_id"] for passage, row in removed.items()}
    assert removed[ids[-2]]["reason"] == "nearly equal" and removed[ids[-1]]["reason"] == "equal"
    assert {ids[1], ids[-2], ids[-1]} <= {p for p, kept in fallen.items() if kept == "p0"}
    assert not set(ids[2:12]) & set(fallen)  # passages of other scripts stay


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("दिन में", "दीन में"),  # day, poor: a vowel sign
        ("फल", "फ़ल"),  # a nukta
        ("かき", "がき"),  # oyster, brat: a voicing mark
        ("ปาปา", "ป่าป้า"),  # tone marks
        ("ใกล้บ้าน", "ไกลบ้าน"),  # near and far
        ("мой дом", "мои дом"),
        ("سأل", "سال"),  # asked, flowed: a hamza
        ("한국", "하국"),
        ("ក្រ", "កិ"),
    ],
)
def test_signs_that_make_another_word_stay(left, right):
    for form in ("NFC", "NFD"):
        forms = [unicodedata.normalize(form, text) for text in (left, right)]
        assert len(set(normalize_texts(forms))) == 2
        assert set(terms(fold(forms)[0])) != set(terms(fold(forms)[1]))
        first, second = search_terms(forms)
        assert first != second
    assert len(set(normalize_texts([left, unicodedata.normalize("NFD", left)]))) == 1


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("The COPPER kettle, it’s old", "the copper-kettle it's\u00a0old"),
        ("你好，世界。", "你好 世界"),
        ("使用 BERT 模型", "使用ＢＥＲＴ模型"),
        ("ｶﾀｶﾅ", "カタカナ"),
        ("كِتَابٌ قَدِيم", "كتـــاب قديم"),
        ("שָׁלוֹם עולם", "שלום עולם"),
        ("Ёлка за́мок", "елка замок"),
        ("ΟΔΟΣ ΑΘΗΝΑΣ", "οδός αθηνάς"),
        ("co\u00adoperate \ufeffnaïve", "cooperate naive"),
        ("ที่ อยู่", "ที่อยู่"),
    ],
)
def test_one_text_in_two_forms_is_one(left, right):
    assert len(set(normalize_texts([left, right]))) == 1


def test_words_are_runs_of_letters_and_single_letters_where_there_are_no_spaces():
    assert words("The co-op's naïve_user, 2.5 mg") == ["the", "co", "op", "s", "naive_user", "2", "5", "mg"]
    assert words("使用BERT模型") == ["使", "用", "bert", "模", "型"]
    assert words("กี่วัน हिन्दी 구리") == ["กี่", "วั", "น", "हिन्दी", "구리"]
    assert terms("の取っ手 구리") == ["の", "取", "っ", "手", "구", "리", "구리"]
    assert list(search_terms(["İstanbul çayı", "istanbul çayı"])) == [["istanbul", "çayı"]] * 2
    assert list(search_terms(["a Kettle’s handle", "修理BERT a 茶"])) == [
        ["kettle", "handle"],
        ["修", "理", "修理", "bert", "茶"],
    ]
    assert (count_words("Is it – so?"), count_words("使用BERT模型，好"), count_words("ซ่อมหูจับ")) == (4, 3, 2)
    # a name of nine Thai letters is no run of nine words
    assert copied_run(words("ประเทศไทยอยู่ที่ไหน"), words("ประเทศไทย")) == pytest.approx(3)


def test_what_bm25_cannot_do_is_said_before(caplog):
    queries = ["x"]
    bm25_search([SCRIPTS["cyrillic"].passage] * 3, queries, 1)
    assert "not stemmed (in experiments.prepare, mine.retrievers.bm25.bm25.language takes russian" in caplog.text
    caplog.clear()
    bm25_search([SCRIPTS["cyrillic"].passage] * 3, queries, 1, language="russian")
    bm25_search([SCRIPTS["accents"].passage] * 3, queries, 1, language="french")
    assert "BM25:" not in caplog.text
    bm25_search([SCRIPTS["chinese"].passage] * 3, queries, 1)
    assert "mostly in Han script: they are searched by characters" in caplog.text
    assert [main_script([SCRIPTS[name].passage]) for name in ("japanese", "arabic", "accents")] == [
        "HIRAGANA",
        "ARABIC",
        "LATIN",
    ]


def test_what_the_checks_of_queries_cannot_do_is_said_before():
    assert language_notes(["A copper kettle is repaired with tin and a hammer."], "en") == []
    english, other = language_notes([SCRIPTS["japanese"].passage], "en")
    assert "English phrases alone" in english and "generate.language=ja" in other
    assert len(language_notes([SCRIPTS["japanese"].passage], "ja")) == 1
    assert language_notes([], "en") == []


@pytest.fixture
def chinese(tmp_path):
    """A corpus of questions and answers in Chinese, both numbered from 0, in BEIR's layout."""
    folder = tmp_path / "faq"
    (folder / "qrels").mkdir(parents=True)
    answers = [
        "铜壶的把手松了，先拆下来再焊好。",
        "大麦在初夏收割，晾干以后入仓。",
        "渡船夜里每小时开一班。",
        "纸风筝要用竹子做骨架。",
    ]
    asked = ["怎么修理铜壶的把手", "什么时候收割大麦", "夜里渡船多久一班", "怎样做纸风筝的骨架"]
    for name, texts in {"corpus": answers, "queries": asked}.items():
        lines = (json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split in ("train", "test"):
        judged = "".join(f"{n}\t{n}\t1\n" for n in range(4))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.mark.parametrize("judged", [True, False])
def test_bm25_mines_a_chinese_corpus_whose_ids_are_those_of_the_queries(chinese, tmp_path, judged):
    if not judged:  # the query's own id is then a passage that nobody judged
        shifted = "".join(f"{n}\t{(n + 1) % 4}\t1\n" for n in range(4))
        (chinese / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + shifted)
    corpus = load_corpus(chinese)
    groups = {"human": {"source": "judged"}}
    collected = run_stage(CollectQueries(corpus, str(chinese), tmp_path, groups, None), tmp_path)
    mined = run_stage(Mine(corpus, collected, None, {"bm25": Bm25()}, depth=4, candidates=4), tmp_path)
    rows = pq.read_table(mined.file("candidates.parquet"))["rows"].to_pylist()
    if judged:
        assert mined.manifest["counts"]["positive in bm25"] == 4
        assert [found[0] for found in rows] == [0, 1, 2, 3]
        assert "left out: of the query's id" not in mined.manifest["counts"]
    else:
        assert all(number not in found for number, found in enumerate(rows))
        assert mined.manifest["counts"]["left out: of the query's id"] == 4


def test_english_words_are_what_they_were():
    texts = ["Vitamin-D lowers β-cell stress; 5–10 % (naïve)", "don't_stop the 3' UTR…", "µg/mL of ﬁbrin²"]
    assert list(search_terms(texts)) == [re.findall(r"(?u)\b\w\w+\b", text.lower()) for text in texts]
    plain = ["Don't stop the 3' UTR of a_b", "HELLO, world"]
    assert [words(text) for text in plain] == [re.findall(r"\w+", text.lower()) for text in plain]
    assert np.array_equal([count_words(text) for text in texts], [len(text.split()) for text in texts])

"""A made-up corpus of five languages: what craftsmen do in towns, twenty passages of each language."""

CRAFTS = {
    "de": ("Bäcker", "Schreiner", "Schmied", "Weber", "Töpfer"),
    "fr": ("boulanger", "menuisier", "forgeron", "tisserand", "potier"),
    "ru": ("пекарь", "столяр", "кузнец", "ткач", "гончар"),
    "ja": ("パン屋", "大工", "鍛冶屋", "織物師", "陶芸家"),
    "el": ("φούρναρης", "ξυλουργός", "σιδεράς", "υφαντής", "αγγειοπλάστης"),
}
PLACES = {
    "de": ("am alten Hafen", "hinter der Kirche", "neben dem Fluss", "auf dem Marktplatz"),
    "fr": ("près du vieux port", "derrière l'église", "au bord de la rivière", "sur la place du marché"),
    "ru": ("у старого порта", "за церковью", "возле реки", "на рыночной площади"),
    "ja": ("古い港の近く", "教会の裏", "川のそば", "市場の広場"),
    "el": ("κοντά στο παλιό λιμάνι", "πίσω από την εκκλησία", "δίπλα στο ποτάμι", "στην πλατεία της αγοράς"),
}
PASSAGES = {
    "de": "Der {craft} arbeitet jeden Morgen {place}. Seine Werkstatt ist klein, aber viele Leute aus der Stadt "
    "kommen zu ihm. Am Abend erzählt er den Kindern, wie er als junger Mann sein Handwerk gelernt hat.",
    "fr": "Le {craft} travaille chaque matin {place}. Son atelier est petit, mais beaucoup de gens de la ville "
    "viennent chez lui. Le soir, il raconte aux enfants comment il a appris son métier quand il était jeune.",
    "ru": "Каждое утро {craft} работает {place}. Его мастерская маленькая, но к нему приходят многие жители города. "
    "Вечером он рассказывает детям, как в молодости учился своему ремеслу.",
    "ja": "{craft}は毎朝{place}で働いています。作業場は小さいですが、町の人がたくさん訪れます。"
    "夜になると、若いころにどうやって仕事を覚えたかを子どもたちに話します。",
    "el": "Κάθε πρωί ο {craft} δουλεύει {place}. Το εργαστήριό του είναι μικρό, αλλά πολλοί άνθρωποι από την πόλη "
    "έρχονται σε αυτόν. Το βράδυ διηγείται στα παιδιά πώς έμαθε την τέχνη του όταν ήταν νέος.",
}


def passages(code: str) -> list[tuple[str, str]]:
    """Give title and text of each passage of a language, by its ISO 639-1 code."""
    return [
        (f"{craft}, {place}", PASSAGES[code].format(craft=craft, place=place))
        for craft in CRAFTS[code]
        for place in PLACES[code]
    ]

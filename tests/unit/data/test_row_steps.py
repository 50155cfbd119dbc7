"""Steps that look at one row: each rule against texts that just meet it and just miss it."""

from __future__ import annotations

import json
import string
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.data.reading.rows import Row
from tasks.data.selection.decontamination import Overlap, runs
from tasks.data.steps.card_numbers import ISSUERS, luhn
from tasks.data.steps.cleaning import Clean, length_fault, repair
from tasks.data.steps.language import LANGUAGES, Language, detector, language_fault
from tasks.data.steps.pii import masker
from tasks.data.steps.quality import c4, gopher_fault, repetition_fault
from tasks.data.steps.steps import Bad, Labels, RowSteps, row_steps, walk_through

PROSE = (
    "The committee met on Monday to talk about the new bridge over the river. Most of the people who live nearby have "
    "wanted it for years, and with the old one closed to lorries the trip to the market takes twice as long. The "
    "engineer showed three drawings. She said that the cheapest would last for thirty years if it was painted often."
)


def through(text: str, label: str | None = None, labels: Labels | None = None, **settings: Any) -> Any:
    steps = row_steps(RowSteps.model_validate(settings), labels)
    return walk_through(Row("r", text, "g", label), steps), {account.step: account for account, _ in steps}


@given(st.text(max_size=30))
def test_repair_is_a_normal_form(text: str) -> None:
    for kind in ("nfc", "ftfy"):
        once = repair(kind)(text)
        assert unicodedata.is_normalized("NFC", once)
        if kind == "nfc":
            assert repair(kind)(once) == once == unicodedata.normalize("NFC", text)


def test_ftfy_repairs_what_was_decoded_wrongly() -> None:
    assert repair("ftfy")("schÃ¶n") == "schön"
    assert repair("ftfy")("a &amp; b") == "a &amp; b"
    assert repair("none")("e\u0301") == "e\u0301"


@given(st.text(st.one_of(st.characters(max_codepoint=127), st.just("ü")), max_size=60))
def test_what_ftfy_is_not_asked_about_it_would_not_change(text: str) -> None:
    import ftfy

    settings = ftfy.TextFixerConfig(unescape_html=False, explain=False)
    assert repair("ftfy")(text) == ftfy.fix_text(text, settings)


def test_lengths() -> None:
    limits = Clean(min_chars=4, max_chars=10)
    found = [length_fault(text, limits) for text in ("", "  \n", "abc", "abcd", "x" * 10, "x" * 11)]
    assert found == ["empty", "empty", "shorter than 4 characters", None, None, "longer than 10 characters"]


def test_languages_are_those_of_the_model_which_is_loaded_once() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert set(LANGUAGES) == set(LanguageIdentifier.from_model_file(MODEL_FILE).nb_classes)
    assert detector() is detector()
    assert language_fault(("zxx", 0.99), Language(keep=["en"])) == "no language (zxx)"
    assert language_fault(("zxx", 0.99), Language(keep=["en", "zxx"])) is None


def test_language() -> None:
    detect, english = detector(), Language(keep=["en"])
    assert language_fault(detect(PROSE), english) is None
    german = "Der Ausschuss traf sich am Montag, um über die neue Brücke über den Fluss zu sprechen."
    assert language_fault(detect(german), english) == "language de"
    assert language_fault(detect("12345"), english) == "language unclear"
    with pytest.raises(ValidationError, match="unknown language 'eng'; did you mean en"):
        Language(keep=["eng"])


def test_gopher_rules() -> None:
    assert gopher_fault(PROSE) is None
    assert gopher_fault(" ".join(PROSE.split()[:49])) == "gopher: not 50 to 100,000 words"
    assert gopher_fault("the be " * 30) == "gopher: mean word length not 3 to 10"
    assert gopher_fault(PROSE + " #" * 8) == "gopher: over 0.1 symbols a word"
    bullets = "\n".join(f"- {word} that is with the others" for word in PROSE.split()[:20])
    assert gopher_fault(bullets) == "gopher: over 90% bullet lines"
    assert gopher_fault(PROSE.replace(".", " and so on...\n")) == "gopher: over 30% lines end in an ellipsis"
    assert gopher_fault(PROSE + " 12345" * 20) == "gopher: under 80% of words have a letter"
    assert gopher_fault("committee drawing " * 40) == "gopher: under 2 stop words"


def test_repetition_rules() -> None:
    assert repetition_fault(PROSE) is None
    lines = PROSE.replace(". ", ".\n")
    assert repetition_fault(lines) is None
    assert repetition_fault(lines + "\nagain" * 6) == "repetition: over 30% repeated lines"
    assert "characters in repeated lines" in str(repetition_fault(lines + ("\n" + PROSE) * 2))
    assert "commonest 2-gram" in str(repetition_fault(PROSE + " ever more" * 12))
    assert "repeated" in str(repetition_fault(PROSE + " " + PROSE))


def test_c4_keeps_sentences_only() -> None:
    page = "Home\nThis is the first sentence here. It is a good one.\nClick here to turn on JavaScript now.\n"
    text, fault = c4(page + "And this is a third sentence!")
    assert (text, fault) == ("This is the first sentence here. It is a good one.\nAnd this is a third sentence!", None)
    assert c4(page)[1] == "c4: under 3 sentences"
    assert c4("Lorem ipsum dolor")[1] == "c4: lorem ipsum" and c4("if (x) {")[1] == "c4: a curly bracket"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.example.org.", "write to <EMAIL>."),
        ("a@b is no address, nor is @name", "a@b is no address, nor is @name"),
        ("call +49 30 901820 or (555) 123-4567", "call <PHONE> or <PHONE>"),
        ("order 20240131 of 1234567", "order 20240131 of 1234567"),
        ("from 192.168.0.17 and 2001:db8::8a2e:370:7334", "from <IP> and <IP>"),
        ("version 1.2.3, 300.1.1.1 and std::vector", "version 1.2.3, 300.1.1.1 and std::vector"),
        ("card 4111 1111 1111 1111", "card <CARD>"),
        ("card 4111 1111 1111 1112", "card 4111 1111 1111 1112"),
        ("write to max@m\u00fcller.de, or", "write to <EMAIL>, or"),
        ("j\u00fcrgen.meier@firma.de and ju\u0308rgen@mu\u0308ller.de", "<EMAIL> and <EMAIL>"),
        ("o'brien@example.ie, d\u2019arcy@x.fr; 'anna@x.de' (bob@x.de's)", "<EMAIL>, <EMAIL>; '<EMAIL>' (<EMAIL>'s)"),
        ("\u0438\u0432\u0430\u043d@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444 a@b.xn--p1ai", "<EMAIL> <EMAIL>"),
        ("\u90ae\u7bb1\u662fmax@example.com\u8c22\u8c22", "\u90ae\u7bb1\u662f<EMAIL>\u8c22\u8c22"),
        ("\u90ae\u7bb1\uff1a\u5f20\u4e09@\u4f8b\u5b50.\u4e2d\u56fd\u3002", "\u90ae\u7bb1\uff1a<EMAIL>\u3002"),
        ("\u0c05@\u0c09\u0c26\u0c3e\u0c39\u0c30\u0c23.\u0c2d\u0c3e\u0c30\u0c24\u0c4d x\uff20y.jp", "<EMAIL> <EMAIL>"),
        ("mailto:a_b@x.co.uk?to=_c@y.org&d=e@f.io", "mailto:<EMAIL>?to=<EMAIL>&d=<EMAIL>"),
        (
            "see https://jane:s3cret@host.example.com/a@b, http://x.org/@name",
            "see https://<EMAIL>/a@b, http://x.org/@name",
        ),
        ("left-pad@1.3.0, user@host, @a.b, a@.de, a@b..de", "left-pad@1.3.0, user@host, @a.b, a@.de, a@b..de"),
        ("x@example.com.", "<EMAIL>."),
        ("+49 (0) 30 901820, +49 (0)171 - 1234567, 0049 30/901820", "<PHONE>, <PHONE>, <PHONE>"),
        ("+33 1 23 45 67 89 or +1 (415) 555-2671 or +91 98765 43210", "<PHONE> or <PHONE> or <PHONE>"),
        ("+4915112345678 and +49 4111 1111 1111", "<PHONE> and <PHONE>"),
        ("::ffff:192.168.0.1, fe80::1%eth0, [2001:db8::1]:80, 10.0.0.1:8080", "<IP>, <IP>%eth0, [<IP>]:80, <IP>:8080"),
        ("12:30:45, a::b, abc::def, ::1", "12:30:45, a::b, abc::def, ::1"),
        ("DE89 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130 00"),
    ],
)
def test_personal_data(text: str, masked: str) -> None:
    assert masker(["email", "phone", "ip", "card"])(text)[0] == masked


@pytest.mark.parametrize(
    "card",
    [
        "4111111111111111", "4111-1111-1111-1111", "4222222222222", "5555 5555 5555 4444", "2223003122003222",
        "378282246310005", "3782 822463 10005", "6011111111111117", "3056 930902 5904", "3530111333300000",
        "6759649826438453", "6250 9410 0652 8599",
    ],
)  # fmt: skip
def test_numbers_of_cards(card: str) -> None:
    assert masker(["card"])(f"paid with {card}, thanks")[0] == "paid with <CARD>, thanks"


@given(st.integers(10**12, 10**19 - 1))
def test_a_number_that_no_issuer_has_is_no_card(number: int) -> None:
    digits = str(number)
    lengths = {length for (low, high), of in ISSUERS if low <= int(digits[: len(str(low))]) <= high for length in of}
    masked = masker(["card"])(digits)[0]
    assert (masked == "<CARD>") == (len(digits) in lengths and luhn(digits) and len({*digits}) > 1)


@pytest.mark.parametrize(
    "phone",
    [
        "+49 1511 2345 6782",
        "49 151 12345678",
        "0049 4111 1111 1111 1111",
        "01 23 45 67 89 01 23 45",
        "030 4111 1111 1111",
    ],
)
def test_a_telephone_is_no_card(phone: str) -> None:
    assert masker(["card"])(phone)[0] == phone
    assert "<CARD>" not in masker(["card", "phone"])(phone)[0]


@given(st.text(st.sampled_from("a\u00fc@.-_' \u4e2d/:1") | st.characters(), max_size=40))
def test_masking_addresses_keeps_all_else_and_leaves_none(text: str) -> None:
    masked, counts = masker(["email"])(text)
    parts = masked.split("<EMAIL>") if counts else [masked]
    place = 0
    for part in parts:
        place = text.index(part, place) + len(part)
    assert counts["email"] >= len(parts) - 1
    assert masker(["email"])(masked)[0] == masked


@given(st.text(string.digits, min_size=1, max_size=18), st.integers(1, 9))
def test_a_check_digit_notices_every_single_wrong_digit(digits: str, shift: int) -> None:
    whole = next(digits + d for d in string.digits if luhn(digits + d))
    for i in range(len(whole)):
        wrong = whole[:i] + str((int(whole[i]) + shift) % 10) + whole[i + 1 :]
        assert not luhn(wrong)


def test_overlap_is_found_across_case_and_punctuation() -> None:
    known = Overlap(np.unique(runs([PROSE], 13)[0]), 13)
    other = "Something else entirely, of which no thirteen words are in the test set, whatever one does."
    half = " ".join(PROSE.split()[:14]) + " then it goes on in its own words for quite a while without any doubt at all"
    shares = known.shares([PROSE.upper().replace(".", " !"), other, "", half])
    assert shares[:3].tolist() == [1.0, 0.0, 0.0]
    assert 0 < shares[3] < 0.5


def test_accounts_add_up() -> None:
    row, accounts = through(
        "Mail a.b@c.org " + PROSE, pii={"mask": ["email"]}, quality={"gopher": True}, language={"keep": ["en"]}
    )
    assert row.text.startswith("Mail <EMAIL> The")
    assert list(accounts) == ["clean", "language", "gopher", "pii"]
    assert accounts["pii"].changed == {"email": 1}
    assert accounts["pii"].characters_in - accounts["pii"].characters_out == len("a.b@c.org") - len("<EMAIL>")
    gone, accounts = through("short", quality={"gopher": True})
    assert gone is None and accounts["gopher"].dropped == {"gopher: not 50 to 100,000 words": 1}
    assert (accounts["gopher"].rows_in, accounts["gopher"].rows_out) == (1, 0)


def test_labels_are_mapped_and_kept() -> None:
    labels = Labels({"spam": "bad", "ham": "good"}, ["good"])
    assert through(PROSE, "ham", labels)[0].label == "good"
    assert through(PROSE, "spam", labels)[1]["label"].dropped == {"label not kept": 1}
    assert through(PROSE, None, labels)[1]["label"].dropped == {"no label": 1}
    assert through(PROSE, "hamm", labels)[0] == Bad("label 'hamm' is not in the map; did you mean 'ham'?")
    assert labels.met == {"good": 1, "bad": 1}


@given(
    st.lists(
        st.text(st.sampled_from("a e\u0301u\u0308\u00e9\u4e2d\U0001f600\u2126"), min_size=1), min_size=3, max_size=3
    ),
    st.sampled_from(["nfc", "none", "ftfy"]),
)
def test_answers_keep_their_places_when_the_text_is_repaired(parts: list[str], form: Any) -> None:
    before, answer, behind = parts[0], f"[{parts[1]}]", f".{parts[2]}"
    shown = {"text": [answer, "elsewhere"], "answer_start": [len(before), 0]}
    row = Row("a", before + answer + behind, "g", None, ("other", json.dumps(shown), 3))
    done = walk_through(row, row_steps(RowSteps(clean=Clean(unicode=form))))
    assert isinstance(done, Row) and (done.values[0], done.values[2]) == ("other", 3)
    moved = json.loads(done.values[1])
    (text, wrong), (start, _) = moved["text"], moved["answer_start"]
    assert done.text[start : start + len(text)] == text == repair(form)(answer)
    assert wrong == "elsewhere", "what did not stand there is left to whoever reads it"


def test_what_is_not_an_answer_is_left_as_it_is() -> None:
    for value in (
        '{"answer_start": 3, "text": "x"}',
        '{"answer_start"',
        '["\\"answer_start\\""]',
        '{"answer_start":[1],"text":[]}',
    ):
        row = Row("a", "e\u0301", "g", None, (value,))
        done = walk_through(row, row_steps(RowSteps()))
        assert isinstance(done, Row) and done.values == (value,) and done.text == "\u00e9"

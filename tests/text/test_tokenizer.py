import json
import random

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from icarus.errors import ConfigError
from icarus.text.stop_strings import OutputText, StopStrings
from icarus.text.tokenizer import Detokenizer, Tokenizer


def stream(tokenizer, ids, before=()):
    detokenizer = Detokenizer(tokenizer, before)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    return pieces, detokenizer.flush()


@pytest.mark.parametrize("text", ["plain", "héllo wörld", "日本語 テスト", "👩‍👩‍👧 family 🎉", "a\n\n  b\t"])
def test_multi_byte_text_comes_whole(model, text):
    ids = model.tokenizer.encode(text)
    assert len(ids) == len(text.encode())  # a token a byte: every character but ASCII is split
    pieces, rest = stream(model.tokenizer, ids)
    assert "".join(pieces) == text and rest == ""
    assert not any("\ufffd" in piece for piece in pieces)
    assert [len(piece) for piece in pieces].count(1) == len(text)


def test_bytes_that_are_not_utf8(model):
    ids = model.tokenizer.encode("é")
    pieces, rest = stream(model.tokenizer, [*model.tokenizer.encode("ab"), ids[0]])
    assert pieces == ["a", "b", ""] and rest == "\ufffd"
    pieces, rest = stream(model.tokenizer, [ids[0]] * 50)
    assert len("".join(pieces) + rest) == 50
    assert max(map(len, pieces)) <= 8


def test_special_and_unknown_tokens_are_silent(model):
    im_end = model.tokenizer.id_of("<|im_end|>")
    pieces, rest = stream(model.tokenizer, [im_end, *model.tokenizer.encode("ok"), 100_000, im_end])
    assert "".join(pieces) + rest == "ok"


def test_leading_spaces_depend_on_what_comes_before():
    words = ["▁the", "▁cat", "s", "▁sat"]
    raw = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="s"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    raw.decoder = decoders.Metaspace()  # type: ignore[assignment]
    tokenizer = Tokenizer(raw)
    assert stream(tokenizer, [0, 1, 2, 3])[0] == ["the", " cat", "s", " sat"]
    assert stream(tokenizer, [1, 2, 3], before=[0])[0] == [" cat", "s", " sat"]
    assert stream(tokenizer, [1] * 20, before=[0] * 20)[0] == [" cat"] * 20


def test_encode_parses_special_tokens_and_adds_none(model):
    ids = model.tokenizer.encode("<|im_start|>x")
    assert ids[0] == model.tokenizer.id_of("<|im_start|>") and len(ids) == 2


def test_from_folder(tmp_path, model):
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)


def test_saved_truncation_and_padding_do_not_count(tmp_path, model):
    raw = model.tokenizer._raw
    raw.enable_truncation(4)
    raw.enable_padding(length=4)
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert [len(tokenizer.encode(text)) for text in ("abcdefgh", "a")] == [8, 1]


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<|end|>", "pad_token": {"content": "[P]"}},
        {"additional_special_tokens": ["<|end|>", {"content": "[P]"}]},
        {"extra_special_tokens": {"end": "<|end|>", "pad": "[P]"}},
    ],
)
def test_what_tokenizer_config_names_is_special(tmp_path, model, config):
    """One is an added token that is not special, one an entry of the vocabulary, and one has no id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(["[P]", *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    raw.add_tokens([AddedToken("<|end|>", normalized=False, lstrip=True), AddedToken("plain", normalized=False)])
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|none|>"}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert sorted(tokenizer.special_tokens) == ["<|end|>", "[P]"]
    assert tokenizer._raw.get_vocab() == raw.get_vocab()
    ids = tokenizer.encode("a <|end|>[P]plain")
    assert ids == [raw.token_to_id(token) for token in ("a", "<|end|>", "[P]", "plain")]
    assert tokenizer.decode(ids) == "aplain"
    typed = tokenizer.encode_plain("<|end|>[P]")
    assert not {tokenizer.id_of("<|end|>"), tokenizer.id_of("[P]")} & set(typed)
    assert tokenizer.decode(typed) == "<|end|>[P]"


def push_all(stops, pieces):
    matcher = StopStrings(stops)
    return [matcher.push(piece) for piece in pieces], matcher


def test_stop_string_over_pieces():
    out, matcher = push_all(["STOP"], ["go S", "T", "O", "P and", " more"])
    assert out == ["go ", "", "", "", ""] and matcher.matched and matcher.flush() == ""
    out, matcher = push_all(["STOP"], ["go ST", "ART"])
    assert out == ["go ", "START"] and not matcher.matched
    out, matcher = push_all(["STOP"], ["go ST"])
    assert out == ["go "] and matcher.flush() == "ST"


def test_the_earliest_of_several_stop_strings_counts():
    out, matcher = push_all(["b", "ab"], ["xxab"])
    assert out == ["xx"] and matcher.matched
    out, matcher = push_all(["aab"], ["aaa", "b"])
    assert "".join(out) == "a" and matcher.matched


def test_stop_strings_against_plain_search():
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choice("ab") for _ in range(12))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 5))) for _ in range(rng.randint(0, 2))]
        pieces, start = [], 0
        while start < len(text):
            size = rng.randint(1, 4)
            pieces.append(text[start : start + size])
            start += size
        out, matcher = push_all(stops, pieces)
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        assert matcher.matched == bool(ends)
        shown = "".join(out) + matcher.flush()
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        if not ends:
            assert shown == text


def test_output_keeps_ids_through_the_match(model):
    ids = model.tokenizer.encode("héy END tail")
    output = OutputText(Detokenizer(model.tokenizer), ["END"])
    first, text = output.push(ids[:7])
    rest, more = output.push(ids[7:])
    assert first + rest == model.tokenizer.encode("héy END")
    assert text + more + output.flush() == "héy " and output.stopped
    assert output.push(ids) == ([], "")


def test_no_stop_string_matches_before_min_tokens(model):
    ids = model.tokenizer.encode("aENDbENDc")
    for min_tokens, text in ((0, "a"), (3, "a"), (4, "aENDb"), (7, "aENDb"), (8, "aENDbENDc"), (9, "aENDbENDc")):
        output = OutputText(Detokenizer(model.tokenizer), ["END"], min_tokens)
        taken, shown = output.push(ids)
        assert shown + output.flush() == text
        assert output.stopped == (text != "aENDbENDc")
        assert model.tokenizer.decode(taken) == (text + "END" if output.stopped else text)


def test_a_stop_string_inside_what_is_held_for_a_longer_one_is_over():
    """ "ab" ended while nothing could match; it is held as the beginning of "abcd" and must not match later."""
    matcher = StopStrings(["ab", "abcd"])
    assert matcher.push("ab", may_match=False) == ""
    assert matcher.push("x") == "abx" and not matcher.matched
    assert matcher.push("ab", may_match=False) == ""
    assert matcher.push("cd") == "" and matcher.matched


def byte_fallback() -> Tokenizer:
    """As Llama 2's: words and characters, and a token a byte for what is neither; no space before the first word."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "ok", "▁ok"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("o", "k"), ("▁", "ok")]
    raw = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    strip = decoders.Strip(" ", 1, 0)
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])  # type: ignore[assignment]
    raw.add_special_tokens(["</s>"])
    return Tokenizer(raw)


@pytest.mark.parametrize("text", ["ok 😀😀😀 bye", "✅\n✅\nok", "\n\n\n\n\n\n\n\nok", "日本語 ok 👩‍👩‍👧\n"])
def test_byte_fallback(text):
    tokenizer = byte_fallback()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == text


@pytest.mark.parametrize("kind", ["byte fallback", "byte level"])
def test_random_text_after_random_text(model, kind):
    tokenizer = byte_fallback() if kind == "byte fallback" else model.tokenizer
    eos = tokenizer.id_of("</s>") or tokenizer.id_of("<|eot|>")
    rng = random.Random(2)
    for _ in range(300):
        before, text = ("".join(rng.choices("aok \n😀✅é日", k=rng.randint(0, 12))) for _ in range(2))
        ids = tokenizer.encode(f"{before}{text}")
        start = next((i for i in range(len(ids) + 1) if tokenizer.decode(ids[:i]) == before), 0)
        expected = tokenizer.decode(ids)[len(tokenizer.decode(ids[:start])) :]
        for silence in ([], [eos] * 12):
            pieces, rest = stream(tokenizer, [*silence, *ids[start:], *silence * 4], ids[:start])
            assert "".join(pieces) + rest == expected, (before, text)


def test_many_silent_tokens_keep_the_context(model):
    tokenizer = byte_fallback()
    ids, eos = tokenizer.encode("ok ok"), tokenizer.id_of("</s>")
    assert len(ids) == 2
    assert "".join(stream(tokenizer, [ids[0], *[eos] * 100, ids[1]])[0]) == "ok ok"


@pytest.mark.parametrize("kind", ["byte fallback", "byte level"])
@pytest.mark.parametrize("seen", [1, 2, 3])
def test_a_history_that_ends_inside_a_character(model, kind, seen):
    """The character comes whole with the turn that completes it."""
    tokenizer = byte_fallback() if kind == "byte fallback" else model.tokenizer
    ids = tokenizer.encode("ok ✅😀😀😀✅\nok")
    cut = len(tokenizer.encode("ok ✅😀")) + seen
    pieces, rest = stream(tokenizer, ids[cut:], ids[:cut])
    assert "".join(pieces) + rest == "😀😀✅\nok"
    pieces, rest = stream(tokenizer, tokenizer.encode("ok"), ids[:cut])
    assert ("".join(pieces) + rest).strip("\ufffd ") == "ok"


def test_bytes_that_are_not_utf8_spoil_no_text_but_their_own():
    tokenizer = byte_fallback()
    smile, bad = tokenizer.encode("ok😀")[-4:], tokenizer.id_of("<0xF0>")
    ok = tokenizer.encode("ok")
    pieces, rest = stream(tokenizer, [*smile, bad, *ok, *smile, *ok])
    assert "".join(pieces) + rest == "😀\ufffd ok😀 ok"

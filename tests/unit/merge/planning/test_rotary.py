"""Rotary settings: every key counts, and two spellings of one thing are the same."""

import pytest

from stillroom.merge.planning.rotary import read_rotary_settings

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
OLD = {"rope_theta": 500000, "rope_scaling": LLAMA3, "max_position_embeddings": 131072}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

LONG = {
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1, 1.1], "long_factor": [1, 2]},
}


def old(scaling, **more):
    return {**OLD, "rope_scaling": scaling, **more}


def differ(one, other):
    one, other = read_rotary_settings(one), read_rotary_settings(other)
    return {key for key in one.keys() & other.keys() if repr(one[key]) != repr(other[key])}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OLD, {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "max_position_embeddings": 9}),
        (OLD, {"text_config": OLD}),
        (OLD, old({**LLAMA3, "factor": 8, "low_freq_factor": 1, "type": "llama3"})),
        (old(None), old({"type": "default"})),
        (old(None), old({"type": "linear", "factor": 1.0})),
        (old(None), {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        (old({**YARN, "factor": 4, "mscale": []}), old({**YARN, "factor": 4.0})),
        (old({"type": "su", "factor": 4}), old({"rope_type": "longrope", "factor": 4.0})),
        (old(YARN), old({**YARN, "rope_type": None, "type": "yarn", "beta_fast": 32.0})),
        (old(YARN), old({**YARN, "attention_factor": 1.1386294361119891})),
        (old(YARN), old({**YARN, "original_max_position_embeddings": None}) | {
            "max_position_embeddings": 32768}),
        (old({"type": "mrope", "mrope_section": [2, 3]}), old({
            "rope_type": "default", "mrope_section": [2, 3], "type": "default"})),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4,
             "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
            {"rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
        ),
        ({}, OLD | {"rope_scaling": None}),
        (old({"type": "linear", "factor": 2, "note": "a", "original_max_position_embeddings": 4}),
         old({"type": "linear", "factor": 2})),
        (old({**YARN, "finetuned": True}), old({**YARN, "finetuned": False, "alpha": 2})),
        (old({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 9}),
         old({"type": "dynamic", "factor": 2})),
        ({"rotary_pct": 0.25, "rotary_emb_base": 10000}, {
            "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}}),
        (LONG, LONG | {"rope_scaling": {**LONG["rope_scaling"], "factor": 32,
            "attention_factor": 1.1902380714238083}}),
        (old({**YARN, "factor": "x", "a": [10**400, {}]}), old({**YARN, "factor": "x"})),
    ],
)  # fmt: skip
def test_spellings_of_one_thing_agree(one, other):
    assert not differ(one, other)
    assert not differ(other, one)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("factor", 32.0, "rope scaling factor"),
        ("low_freq_factor", 2.0, "rope scaling low_freq_factor"),
        ("high_freq_factor", 2.0, "rope scaling high_freq_factor"),
        ("original_max_position_embeddings", 4096, "rope scaling original_max_position_embeddings"),
        ("rope_type", "yarn", "rope scaling type"),
        ("rope_theta", 10000.0, "rope_theta"),
    ],
)
def test_every_key_is_compared(key, value, name):
    new = {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, key: value}}
    assert differ(OLD, new) == {name}
    kinds = {"full_attention": new["rope_parameters"], "other": LLAMA3}
    assert differ(OLD, {"rope_parameters": kinds}) == {name}
    sliding = [
        {"rope_parameters": {"sliding_attention": {**LLAMA3, "rope_theta": 5e5, **change}}}
        for change in ({}, {key: value})
    ]
    assert differ(*sliding) == {f"{name} of sliding_attention"}
    assert differ(old(YARN), old({**YARN, "mscale": 1, "mscale_all_dim": 1})) == {
        "rope scaling attention_factor",
        "rope scaling mscale_all_dim",
    }


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        (
            {"rotary_pct": 0.25, "rotary_emb_base": 10000},
            {"rotary_pct": 1.0, "rotary_emb_base": 1000000},
            {"rope_theta", "partial_rotary_factor"},
        ),
        (
            old({"type": "dynamic", "factor": 2}),
            old({"type": "dynamic", "factor": 2}, max_position_embeddings=4096),
            {"rope scaling max_position_embeddings"},
        ),
        (
            LONG,
            {**LONG, "max_position_embeddings": 65536},
            {"rope scaling attention_factor"},
        ),
        (
            old({"type": "own", "width": 2}),
            old({"type": "own", "width": 3}),
            {"rope scaling width"},
        ),
    ],
)
def test_keys_with_an_effect_differ(one, other, names):
    assert differ(one, other) == names

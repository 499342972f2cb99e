"""*Cache reuse*: what one KV cache for all specialists saves. The dashboard that only Icarus can have."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from icarus_dashboards.page import Choice, Row, page
from icarus_dashboards.panels import Panel, Query, lines, matrix, number

_REUSED = 'model=~"$model", source=~"local|remote"'


def build() -> Dashboard:
    return page(
        "icarus-cache-reuse",
        "Icarus / Cache reuse",
        "How much of the prompts was in the cache already, who wrote it, and what that saved.",
        Choice("model", "icarus_prompt_tokens_total"),
        [
            Row("How much is reused", [_reused_share(), _avoided(), _seconds_saved(), _memory_ratio()]),
            Row("Where prompt tokens come from", [_share_by_source(), _tokens_by_source(), _share_by_model()]),
            Row("Across specialists", [_matrix(), _read_from_others(), _share_from_others()]),
            Row("What that saves", [_encoder_tokens(), _encoder_seconds(), _memory()]),
            Row("The pools that hold it", [_leased(), _leases(), _evictions()]),
        ],
    )


def _reused_share() -> Panel:
    return number(
        "Prompt tokens reused",
        "Share of prompt tokens in the time shown whose KV was in a cache already, here or on another worker.",
        "percentunit",
        f"sum(increase(icarus_prompt_tokens_total{{{_REUSED}}}[$__range])) "
        '/ sum(increase(icarus_prompt_tokens_total{model=~"$model"}[$__range]))',
    )


def _avoided() -> Panel:
    return number(
        "Encoder tokens avoided",
        "Prompt tokens in the time shown that no worker had to put through the encoder.",
        "short",
        'sum(increase(icarus_encoder_tokens_avoided_total{model=~"$model"}[$__range]))',
    )


def _seconds_saved() -> Panel:
    return number(
        "Compute seconds saved",
        "Encoder tokens avoided in the time shown, each at what a prefilled token cost in the same time. All models.",
        "s",
        "sum(increase(icarus_encoder_tokens_avoided_total[$__range])) * sum(increase(icarus_encoder_seconds_total"
        '[$__range])) / sum(increase(icarus_step_rows_total{kind="encoder"}[$__range]))',
    )


def _memory_ratio() -> Panel:
    return number(
        "KV memory, private / shared",
        "How many times the KV memory held now would be needed if each specialist kept a cache of its own.",
        "suffix:x",
        "icarus:kv_private_bytes:sum / icarus:kv_held_bytes:sum",
    )


def _share_by_source() -> Panel:
    return lines(
        "Prompt tokens by source, share",
        "computed: put through the encoder for this turn. local: in the worker's own cache. remote: read from another "
        "worker's cache. More computed than usual means that reuse has suffered: look at evictions and at routing.",
        "percentunit",
        Query(
            'sum by (source) (rate(icarus_prompt_tokens_total{model=~"$model"}[$__rate_interval])) '
            '/ ignoring (source) group_left sum(rate(icarus_prompt_tokens_total{model=~"$model"}[$__rate_interval]))',
            "{{source}}",
        ),
        stacked=True,
    )


def _tokens_by_source() -> Panel:
    return lines(
        "Prompt tokens by source",
        "The same in tokens a second: how much prompt there is, and how much of it costs compute.",
        "suffix:tokens/s",
        Query('sum by (source) (rate(icarus_prompt_tokens_total{model=~"$model"}[$__rate_interval]))', "{{source}}"),
        stacked=True,
    )


def _share_by_model() -> Panel:
    return lines(
        "Prompt tokens reused, by model",
        "Share of each model's prompt tokens that was cached. A specialist far below the others is private, or its "
        "prompts differ from theirs at the beginning.",
        "percentunit",
        Query(
            f"sum by (model) (rate(icarus_prompt_tokens_total{{{_REUSED}}}[$__rate_interval])) "
            '/ sum by (model) (rate(icarus_prompt_tokens_total{model=~"$model"}[$__rate_interval]))',
            "{{model}}",
        ),
        width="full",
    )


def _matrix() -> Panel:
    return matrix(
        "Tokens written under one specialist and read under another",
        "Rows: the specialist whose turn first wrote the KV. Columns: the one whose turn read it. Counted since the "
        "gateway started. An ordinary server computes and stores each of these tokens again for the reader.",
        "short",
        'sum by (written_under, read_under) (icarus_cross_adapter_tokens_total{read_under=~"$model"})',
        row="written_under",
        column="read_under",
    )


def _read_from_others() -> Panel:
    return lines(
        "Tokens read from other specialists' turns",
        "What each model read that was first written while another was served.",
        "suffix:tokens/s",
        Query(
            'sum by (read_under) (rate(icarus_cross_adapter_tokens_total{read_under=~"$model"}[$__rate_interval]))',
            "{{read_under}}",
        ),
        stacked=True,
    )


def _share_from_others() -> Panel:
    return lines(
        "Share of reuse that crosses specialists",
        "Of all reused prompt tokens, those that another specialist's turn wrote. An ordinary prefix cache stands at "
        "zero here.",
        "percentunit",
        Query(
            'sum(rate(icarus_cross_adapter_tokens_total{read_under=~"$model"}[$__rate_interval])) '
            f"/ sum(rate(icarus_prompt_tokens_total{{{_REUSED}}}[$__rate_interval]))",
            "from another specialist",
        ),
    )


def _encoder_tokens() -> Panel:
    return lines(
        "Encoder tokens, done and avoided",
        "Prompt tokens that went through the encoder, and those that did not have to.",
        "suffix:tokens/s",
        Query(
            'sum(rate(icarus_prompt_tokens_total{model=~"$model", source="computed"}[$__rate_interval]))', "computed"
        ),
        Query('sum(rate(icarus_encoder_tokens_avoided_total{model=~"$model"}[$__rate_interval]))', "avoided"),
        stacked=True,
        width="third",
    )


def _encoder_seconds() -> Panel:
    return lines(
        "Encoder compute, done and saved",
        "Seconds of prefill each second, all workers and models together. Saved: avoided tokens at what a prefilled "
        "token costs. 2 means that reuse does the work of two workers that only prefill.",
        "suffix:s/s",
        Query("sum(rate(icarus_encoder_seconds_total[$__rate_interval]))", "spent"),
        Query("icarus:encoder_seconds_saved:rate5m", "saved"),
        width="third",
    )


def _memory() -> Panel:
    return lines(
        "KV memory held, and what private caches would take",
        "Held: all blocks in use or cached, all workers. Private: the same contents if every specialist that wrote or "
        "read a block had a copy of its own.",
        "bytes",
        Query("icarus:kv_held_bytes:sum", "held"),
        Query("icarus:kv_private_bytes:sum", "private caches"),
        width="third",
    )


def _leased() -> Panel:
    return lines(
        "Blocks lent to other workers",
        "Blocks that may not be evicted now because another worker reads them.",
        "short",
        Query("sum by (instance) (icarus_leased_blocks)", "{{instance}}"),
        stacked=True,
        width="third",
    )


def _leases() -> Panel:
    return lines(
        "Leases",
        "granted and released belong together. expired: the reader went away or was too slow. lapsed_on_read: a "
        "reader learned afterwards that its lease had ended, threw the blocks away and computed them.",
        "suffix:/s",
        Query("sum by (event) (rate(icarus_leases_total[$__rate_interval]))", "{{event}}"),
        width="third",
    )


def _evictions() -> Panel:
    return lines(
        "Evictions",
        "Cached blocks given up for new ones. Many evictions and falling reuse: the pool ([cache] num_blocks) is too "
        "small for what is talked about.",
        "suffix:blocks/s",
        Query("sum by (instance) (rate(icarus_kv_evictions_total[$__rate_interval]))", "{{instance}}"),
        width="third",
    )

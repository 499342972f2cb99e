def test_a_batch_that_takes_many_steps_to_fill_is_whole_when_it_is_timed(bench, on_tiny):
    """The benchmark raises where it is not."""
    sizes = ["--prefill-tokens=16", "--batches=4", "--decode-context=48", "--paired-batch=2", "--paired-context=16"]
    repeated = ["--steps=3", "--repetitions=1", "--specialists=2", "--rank=4"]
    small_steps = ["--engine-max-batch-tokens=16", "--engine-max-running=8"]
    results = bench("engine", *on_tiny, *sizes, *repeated, *small_steps)["results"]
    assert [each["batch"] for each in results["decode"]] == [4, 4, 4]


def test_every_figure_is_there_and_adds_up(bench, on_tiny):
    sizes = ["--prefill-tokens=96", "--batches=1,3", "--decode-context=32", "--paired-batch=2", "--paired-context=48"]
    repeated = ["--steps=3", "--repetitions=2", "--specialists=2", "--rank=4"]
    results = bench("engine", *on_tiny, *sizes, *repeated)["results"]
    kinds = ["base", "shared", "private"]
    assert [each["kind"] for each in results["prefill"]] == kinds
    for each in results["prefill"]:
        assert len(each["all_seconds"]) == 2 and each["tokens_per_second"] == 96 / each["seconds"]
    assert [(each["batch"], each["kind"]) for each in results["decode"]] == [(b, k) for b in (1, 3) for k in kinds]
    for each in results["decode"]:
        assert each["tokens_per_second"] == each["batch"] / each["step_seconds"]
        assert each["step_seconds_p95"] >= each["step_seconds"] > 0
    step = {each["kind"]: each["step_seconds"] for each in results["paired_step"]["steps"]}
    assert results["paired_step"]["shared_over_base"] == step["shared"] / step["base"]
    memory = results["memory"]
    assert memory["kv_per_token"] == 3 * 2 * 2 * 16 * 4  # layers, K and V, heads, head_dim, bytes
    assert memory["resident_at_end"] > 0

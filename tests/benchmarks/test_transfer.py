def test_blocks_arrive_in_every_way(bench):
    results = bench("transfer", "--block-bytes=4096", "--blocks=1,8", "--repetitions=3")["results"]
    ways = ["transfer thread", "transport", "bare NIXL", "memcpy"]
    assert [(each["num_blocks"], each["way"]) for each in results["reads"]] == [(n, w) for n in (1, 8) for w in ways]
    for each in results["reads"]:
        assert each["bytes_per_second"] == each["num_blocks"] * 4096 / each["seconds"]
    rates = {each["way"]: each["bytes_per_second"] for each in results["reads"] if each["num_blocks"] == 8}
    assert results["thread_over_bare"]["8"] == rates["transfer thread"] / rates["bare NIXL"]
    assert results["transport_over_bare"]["8"] == rates["transport"] / rates["bare NIXL"]

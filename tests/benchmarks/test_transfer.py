from icarus.cli.main import main


def test_blocks_arrive_in_every_way(bench):
    results = bench("transfer", "--block-bytes=4096", "--blocks=1,8", "--repetitions=3")["results"]
    ways = ["transfer thread", "transport", "bare NIXL", "memcpy"]
    assert [(each["num_blocks"], each["way"]) for each in results["reads"]] == [(n, w) for n in (1, 8) for w in ways]
    for each in results["reads"]:
        assert each["bytes_per_second"] == each["num_blocks"] * 4096 / each["seconds"]
    rates = {each["way"]: each["bytes_per_second"] for each in results["reads"] if each["num_blocks"] == 8}
    assert results["thread_over_bare"]["8"] == rates["transfer thread"] / rates["bare NIXL"]
    assert results["transport_over_bare"]["8"] == rates["transport"] / rates["bare NIXL"]


def test_what_ucx_logs_is_in_nobodys_way(bench, monkeypatch):
    monkeypatch.setenv("UCX_LOG_LEVEL", "info")
    assert bench("transfer", "--block-bytes=4096", "--blocks=1", "--repetitions=1")["results"]["reads"]


def test_an_owner_that_does_not_come_up_is_told(monkeypatch, capsys):
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert main(["bench", "transfer", "--block-bytes=4096", "--blocks=1", "--repetitions=1"]) == 1
    assert "the process that owns the blocks did not come up" in capsys.readouterr().err

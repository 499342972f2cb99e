import pytest
import torch

from icarus.cli.main import main


def test_bytes_and_bandwidth_of_every_op(bench):
    sizes = ["--shape=smollm2-135m", "--batches=1,2", "--contexts=24", "--rank=4", "--repetitions=2"]
    results = bench("kernels", "--device=cpu", "--dtype=float32", *sizes)["results"]
    ops = {(each["op"], each["batch"]): each for each in results["ops"]}
    assert len(ops) == len(results["ops"]) == 2 * 7 + 2
    for each in results["ops"]:
        assert each["bytes_per_second"] == each["num_bytes"] / each["seconds"]
        assert each["share_of_copy"] == each["bytes_per_second"] / results["copy_bytes_per_second"] > 0
    row, kv = 9 * 64 * 4, 24 * 2 * 3 * 64 * 4
    assert ops["attention, decode", 2]["num_bytes"] == 2 * (kv + 2 * row)
    assert ops["attention, paired decode", 2]["num_bytes"] == 2 * (kv + 4 * row)
    assert ops["LoRA, down_proj, adapters distinct", 1]["num_bytes"] == 4 * (4 * 1536 + 4 * 576 + 1536 + 2 * 576)
    assert ops["noise", 2]["num_bytes"] == 2 * (2 * 49152 * 4 + 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("argv", [["kernels"], ["transfer", "--device=cuda"]])
def test_without_a_gpu_it_says_so(argv, capsys):
    assert main(["bench", *argv]) == 2
    assert "finds no GPU" in (err := capsys.readouterr().err) and err.count("\n") == 1

"""The speed benchmark of retrieval compares ways that find the same."""

from __future__ import annotations

from argparse import Namespace
from concurrent.futures import Future

import numpy as np
import pytest

from unbraid.benchmark import retrieval_speed

OPTIONS = Namespace(n=3_000, dim=6, queries=40, k=5, threads=1, seed=0)


@pytest.mark.parametrize("way", ["exact", "argpartition", "topk", "Flat", "IVF16,Flat:nprobe=16"])
def test_exact_ways_find_the_same(way, monkeypatch):
    monkeypatch.setattr(retrieval_speed, "BLOCK", 700)
    if way in ("Flat", "IVF16,Flat:nprobe=16"):
        pytest.importorskip("faiss")
    built, searched, memory, found = retrieval_speed.measure(way, OPTIONS)
    target, query = retrieval_speed.codes(3_000, 6, 40, 0)
    np.testing.assert_array_equal(found, np.argsort(-query @ target.T, axis=1)[:, :5])
    assert min(built, searched) >= 0
    assert 0.05 < memory < 50


def test_the_table_has_a_line_per_way(monkeypatch, capsys):
    class Here:
        """Runs in this process: another one would import everything again."""

        def __init__(self, *arguments, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def submit(self, function, *arguments):
            future = Future()
            future.set_result(function(*arguments))
            return future

    monkeypatch.setattr(retrieval_speed, "ProcessPoolExecutor", Here)
    retrieval_speed.main("--n 2000 --dim 4 --queries 30 --k 3 --ways topk argpartition --threads 1".split())
    head, columns, *lines = capsys.readouterr().out.splitlines()
    assert head == "2,000 vectors of 4 numbers, 0.00 GiB; 30 queries"
    assert [line.split()[0] for line in lines] == ["exact", "topk", "argpartition"]
    assert [float(line.split()[-1]) for line in lines] == [1, 1, 1]
    assert "recall" in columns

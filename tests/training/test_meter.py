from __future__ import annotations

import time

import pytest
import torch

from lavit.training.meter import Meter, measured_peak, memory_bytes, peak_flops, speed_words

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """What time it is; a test moves it."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_reading_is_over_the_steps_since_the_last_one(clock):
    meter = Meter(CPU, peak=1000.0)
    for _ in range(4):
        with meter.waiting():
            clock[0] += 0.5
        clock[0] += 1.5
        meter.add(flops=800.0, tokens=30.0)
    found = meter.read()
    assert found["step_seconds"] == 2.0 and found["waiting"] == 0.25
    assert found["mfu"] == 800 / 2 / 1000 and found["tokens_a_second"] == 15.0
    clock[0] += 3.0
    meter.add(0.0, 0.0)
    again = meter.read()
    assert again["step_seconds"] == 3.0 and again["waiting"] == 0.0
    assert "mfu" not in again and "tokens_a_second" not in again, "what nobody counts is not told"


def test_speed_in_words():
    speed = {"tokens_a_second": 1520.4, "mfu": 0.412, "waiting": 0.021, "memory_gib": 2.14}
    assert speed_words(speed) == "1,520 tokens/s, MFU 0.41, 2% waiting for data, 2.1 GiB"
    assert speed_words({"waiting": 0.0, "memory_gib": 0.5}) == "0% waiting for data, 0.5 GiB"


def test_memory_is_that_of_the_process():
    block = torch.ones(2**28, dtype=torch.uint8)
    assert block.numel() < memory_bytes(CPU) < 2**36


def test_the_peak_is_what_a_matrix_product_reaches():
    a = torch.ones(512, 512)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    assert measured_peak(CPU, torch.float32) == pytest.approx(2 * 512**3 / min(times), rel=0.8)


def test_the_peak_of_a_known_gpu_is_that_of_its_data_sheet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 NVL")
    assert peak_flops(torch.device("cuda", 0), "bf16") == 989e12

import math
import time

from hf_gru_captioner.training import EnergyMeter


def test_the_meter_starts_anew_each_time_it_is_asked():
    meter = EnergyMeter()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        math.sqrt(2.0)
    busy = meter()
    assert 1e-6 < busy < 1e-2  # two seconds between 2 and 18,000 watts
    assert meter() < busy / 2


def test_the_trainer_adds_up_what_the_meter_says(make_trainer, make_batches):
    trainer = make_trainer(epochs=2, state_steps=1)  # two steps an epoch: asked at a state, at the end, at its state
    trainer.energy_meter = lambda: 1.0
    history = trainer.fit(make_batches(), lambda model: {"cider": 0.0})
    assert [epoch["energy_kwh"] for epoch in history] == [2.0, 3.0]

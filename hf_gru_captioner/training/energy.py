"""Energy that a run takes, as CodeCarbon (https://codecarbon.io) estimates it from the load of this machine."""


class EnergyMeter:
    """Kilowatt-hours of this machine, all of it, since the meter was last asked.

    An estimate: CodeCarbon reads the counters of the processor where the system shows them, else it takes the thermal
    design power of the model times its load; memory at a watt or two each eight gigabytes.

    Raises:
        ModuleNotFoundError: CodeCarbon isn't installed.
    """

    def __init__(self):
        from codecarbon import OfflineEmissionsTracker

        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA",  # matters for emissions only, which aren't asked for
            output_methods=[],
            allow_multiple_runs=True,
            log_level="error",
        )
        self._tracker.start_task()

    def __call__(self) -> float:
        energy = self._tracker.stop_task().energy_consumed
        self._tracker.start_task()
        return energy

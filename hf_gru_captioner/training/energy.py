"""Energy use of a run, estimated by CodeCarbon (https://codecarbon.io) from the load of this machine."""


class EnergyMeter:
    """Returns the kilowatt-hours of the whole machine since it was last called.

    An estimate: CodeCarbon reads the processor's energy counters where the system exposes them, otherwise it multiplies
    the thermal design power of the model by the load; memory counts one or two watts per eight gigabytes.

    Raises:
        ModuleNotFoundError: CodeCarbon isn't installed.
    """

    def __init__(self):
        from codecarbon import OfflineEmissionsTracker

        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA",  # affects only emissions, which aren't used
            output_methods=[],
            allow_multiple_runs=True,
            log_level="error",
        )
        self._tracker.start_task()

    def __call__(self) -> float:
        energy = self._tracker.stop_task().energy_consumed
        self._tracker.start_task()
        return energy

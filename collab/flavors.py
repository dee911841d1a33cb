"""The machines that can be rented, from a table."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.hardware import Hardware
from slipstream.evaluation.site import Site

_TABLE = Path(__file__).resolve().with_name("flavors.toml")
DEFAULT = "a10g-small"


class Flavor(BaseModel):
    """One kind of machine.

    Attributes:
        gpu: as its driver names it; empty for none.
        gbps: how fast its device reads memory, in GB/s.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    gpu: str
    cores: int = Field(ge=1)
    memory_gb: float = Field(gt=0)
    usd_per_hour: float = Field(ge=0)
    gbps: float = Field(gt=0)

    @property
    def site(self) -> Site:
        """The machine as a site; what isn't known before a job runs is assumed as on its image."""
        gpus = (self.gpu,) if self.gpu else ()
        hardware = Hardware(f"hf-jobs {self.name}", self.cores, self.memory_gb, gpus, True)
        return Site(hardware, has_compiler=True, no_sandbox="")

    def usd(self, seconds: float) -> float:
        """Return what so long a job costs; begun minutes count."""
        return self.usd_per_hour / 60 * -(-seconds // 60)


def find_flavor(name: str) -> Flavor:
    """Return a flavor by name; the default one if that is empty.

    Raises:
        SlipstreamError: the table doesn't have it.
    """
    table = tomllib.loads(_TABLE.read_text())
    if (name or DEFAULT) not in table:
        raise SlipstreamError(f"executor hf-jobs:{name}: known flavors are {', '.join(table)}")
    return Flavor(name=name or DEFAULT, **table[name or DEFAULT])

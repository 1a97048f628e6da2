"""Print the GRANTs of Unity Catalog for the roles that the configuration gives to users and groups.

Reads no table and starts no Spark; run the statements as an owner of the catalog.
"""

from __future__ import annotations

from uplift_spark.console import ConfOption, SetOption, main_command, out, read_config
from uplift_spark.governance.permissions import grants


def command(conf: ConfOption, set_: SetOption = None) -> None:
    """Print a statement a line."""
    for statement in grants(read_config(conf, set_, "grants")):
        out().print(statement, soft_wrap=True)


if __name__ == "__main__":
    main_command(command, __doc__)

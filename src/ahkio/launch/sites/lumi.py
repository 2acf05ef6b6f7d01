"""LUMI, of CSC in Kajaani: nodes of four MI250X, which are eight devices (GCDs), and CPU nodes of 128 cores.

The settings are those of the published Poro 2 scripts and of LUMI's own guides; https://docs.lumi-supercomputer.eu.
Not run there by us yet.
"""

from ahkio.launch.site import Ask, Site

FOLDERS = "/pfs,/scratch,/projappl,/project,/flash,/appl,/opt/cray,/var/spool/slurmd"

SITE = Site(
    devices=8,
    mesh=Ask(partition="standard-g", cpus=7, options=("--mem=480G", "--exclusive")),
    device=Ask(partition="small-g", cpus=7, options=("--mem-per-gpu=60G",)),
    cpu=Ask(partition="small", time="3-00:00:00", cpus=128, options=("--mem=224G",)),
    # The cores that are nearest to GCD 0, 1, ..., without the first of each eight, which is the system's.
    masks=(
        "0xfe000000000000",
        "0xfe00000000000000",
        "0xfe0000",
        "0xfe000000",
        "0xfe",
        "0xfe00",
        "0xfe00000000",
        "0xfe0000000000",
    ),
    variables=(
        ("NCCL_SOCKET_IFNAME", "hsn0,hsn1,hsn2,hsn3"),
        ("NCCL_NET_GDR_LEVEL", "PHB"),
        ("HSA_FORCE_FINE_GRAIN_PCIE", "1"),
        ("MIOPEN_USER_DB_PATH", "/tmp/$USER-miopen-$SLURM_JOB_ID"),  # of the node: Lustre lacks what its database needs
        ("MIOPEN_CUSTOM_CACHE_DIR", "/tmp/$USER-miopen-$SLURM_JOB_ID"),
    ),
    each=('mkdir -p "$MIOPEN_USER_DB_PATH"',),
    enter=("singularity", "exec", "--bind", FOLDERS),
)

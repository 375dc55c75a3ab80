"""Tables of runs: grids of settings, planned as stacks, trained here or elsewhere.

document, spec    what was written: YAML or flags -> grids
expand            grids -> settings, complete configurations
memory, plan      settings -> stacks that fit
work              the call that trains a stack and tells how it goes
sweep             the whole way, and the executor of this process
"""

from itmfeat.sweeps.sweep import plan_sweep, run_plan, sweep

__all__ = ["plan_sweep", "run_plan", "sweep"]

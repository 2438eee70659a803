"""The planner: cost model, solver, lower bound, explanation. Pure; numpy is imported only when a plan is made."""

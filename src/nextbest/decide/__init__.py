"""Which offer, for whom, and why: catalogue, policy, rules, contact policy, arbitration, trace."""

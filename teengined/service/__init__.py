"""The daemon's service: who asks, may it, does it fit, and who does the work. No torch, no process is started here."""

"""Programs that ask engines (`rlsys.contracts.Asking`): how they are advanced, and what many of them share."""

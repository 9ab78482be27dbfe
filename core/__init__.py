"""What every part of Understudy shares: settings, types, errors, database, files, catalog, registry, jobs."""

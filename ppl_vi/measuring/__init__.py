"""The verb `measure`: draws from any system against the exact posterior."""

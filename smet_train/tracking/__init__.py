"""What a run writes down: events, the places they go to, and the measurement of loss spikes."""

"""What drivers and plugins implement. Contract text lives here, behaviour in the leaves; nothing here imports torch."""

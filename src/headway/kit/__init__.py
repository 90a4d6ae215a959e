"""Named compositions of parts; one short file each, citing where its rules come from."""

"""Pages and tables from results on disk. Nothing here touches a host or torch."""

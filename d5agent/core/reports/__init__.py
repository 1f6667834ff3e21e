"""What people read: certificates, reports, pages."""

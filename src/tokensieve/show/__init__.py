"""Results for people: tables, pictures, videos, web pages and plots."""

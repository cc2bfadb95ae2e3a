//! Writes JSON, and nothing else: the report needs no more, and a general library brings a parser and floating point into an
//! image that has to stay small.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// A value with a JSON form.
pub trait Json {
    /// Appends the value to `out`.
    fn write(&self, out: &mut String);

    /// Returns the value as one line.
    fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }
}

/// Implements [`Json`] for a struct: its named fields, in this order. `..field` stands for the keys of a field's own object, and
/// `field as "key"` gives a field another name.
macro_rules! json_struct {
    ($type:ty { $($fields:tt)* }) => {
        impl $crate::json::Json for $type {
            fn write(&self, out: &mut alloc::string::String) {
                $crate::json::open(out);
                $crate::json::json_struct!(@fields self out $($fields)*);
                $crate::json::close(out);
            }
        }
    };
    (@fields $self:ident $out:ident) => {};
    (@fields $self:ident $out:ident .. $field:ident $(, $($rest:tt)*)?) => {
        let inner = $crate::json::Json::to_json(&$self.$field);
        $out.push_str(inner.trim_start_matches('{').trim_end_matches('}'));
        $out.push(',');
        $crate::json::json_struct!(@fields $self $out $($($rest)*)?);
    };
    (@fields $self:ident $out:ident $field:ident as $key:literal $(, $($rest:tt)*)?) => {
        $crate::json::field($out, $key, &$self.$field);
        $crate::json::json_struct!(@fields $self $out $($($rest)*)?);
    };
    (@fields $self:ident $out:ident $field:ident $(, $($rest:tt)*)?) => {
        $crate::json::field($out, stringify!($field), &$self.$field);
        $crate::json::json_struct!(@fields $self $out $($($rest)*)?);
    };
}
pub(crate) use json_struct;

/// Begins an object. This, [`close`] and [`field`] exist once and not at each use: a report has many.
#[inline(never)]
pub(crate) fn open(out: &mut String) {
    out.push('{');
}

/// Ends an object whose last field has left a comma.
#[inline(never)]
pub(crate) fn close(out: &mut String) {
    out.pop();
    out.push('}');
}

/// Appends a key, its value and a comma.
#[inline(never)]
pub(crate) fn field(out: &mut String, key: &str, value: &dyn Json) {
    key.write(out);
    out.push(':');
    value.write(out);
    out.push(',');
}

macro_rules! numbers {
    ($($type:ty)*) => {
        $(impl Json for $type {
            fn write(&self, out: &mut String) {
                // Writing to a String cannot fail.
                let _ = write!(out, "{self}");
            }
        })*
    };
}
numbers!(u8 u32 u64 usize i64 bool);

impl Json for str {
    fn write(&self, out: &mut String) {
        out.push('"');
        for c in self.chars() {
            match c {
                '"' | '\\' => {
                    out.push('\\');
                    out.push(c);
                }
                c if c < ' ' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

impl Json for String {
    fn write(&self, out: &mut String) {
        self.as_str().write(out);
    }
}

impl Json for &str {
    fn write(&self, out: &mut String) {
        (**self).write(out);
    }
}

impl<T: Json> Json for Option<T> {
    fn write(&self, out: &mut String) {
        match self {
            Some(value) => value.write(out),
            None => out.push_str("null"),
        }
    }
}

impl<T: Json> Json for Vec<T> {
    fn write(&self, out: &mut String) {
        out.push('[');
        for (index, value) in self.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            value.write(out);
        }
        out.push(']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Inner {
        a: u64,
        b: Option<i64>,
    }
    json_struct!(Inner { a, b });

    struct Outer {
        name: String,
        inner: Inner,
        list: Vec<Inner>,
        last: bool,
    }
    json_struct!(Outer { name, ..inner, list, last as "final", });

    #[test]
    fn what_is_written_reads_back() {
        let text = Outer {
            name: "a\"\\\n\u{1b}é".into(),
            inner: Inner {
                a: u64::MAX,
                b: Some(-1),
            },
            list: Vec::from([Inner { a: 0, b: None }, Inner { a: 1, b: None }]),
            last: true,
        }
        .to_json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "name": "a\"\\\n\u{1b}é", "a": u64::MAX, "b": -1,
            "list": [{"a": 0, "b": null}, {"a": 1, "b": null}], "final": true,
        });
        assert_eq!(value, expected);
        assert!(!text.contains('\n'));
    }
}

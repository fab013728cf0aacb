// Requests to the server. All addresses are relative: the first part of the page's own is the token.

export const page = crypto.getRandomValues(new Uint32Array(2)).join("-");

async function answered(response) {
  if (!response.ok) {
    const found = await response.json().catch(() => null);
    throw Object.assign(new Error(found?.error ?? `the server answers ${response.status}`), { status: response.status });
  }
  return response;
}

export const get = async path => (await answered(await fetch(path))).json();

export const bytes = async path => (await answered(await fetch(path))).arrayBuffer();

export const post = async (path, value = {}) => (await answered(await fetch(path, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value),
}))).json();
